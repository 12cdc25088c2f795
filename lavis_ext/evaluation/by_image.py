"""Sums of metrics by image: what comparing runs needs of their evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.common.files import read_object, write_json
from lavis_ext.evaluation.bootstrap import Values, image_codes, sums_by_image

BY_IMAGE = "_by_image.json"
"""End of the files' names, after that of the split."""


@dataclass(frozen=True)
class ByImage:
    """Metrics that are means over examples, summed by image.

    Attributes:
        images: ids of the I images, sorted.
        sums: by metric, the sum over each image's examples [I].
        counts: by metric, the number of these examples [I].
    """

    images: Sequence[str]
    sums: Mapping[str, Values]
    counts: Mapping[str, Values]

    @classmethod
    def of(cls, values: Mapping[str, Values], image_ids: Sequence[str]) -> "ByImage":
        """Sum metric values [N], NaN where a metric doesn't apply, of examples by image."""
        images = sorted(set(image_ids))
        codes = image_codes(image_ids)
        pairs = {name: sums_by_image(codes, each, len(images)) for name, each in values.items()}
        return cls(
            images,
            {name: sums for name, (sums, _) in pairs.items()},
            {name: counts for name, (_, counts) in pairs.items()},
        )

    def write(self, path: Path) -> None:
        """Write to a JSON file. Raises OSError on failure."""
        metrics = {
            name: {"sums": sums.tolist(), "counts": self.counts[name].astype(int).tolist()}
            for name, sums in self.sums.items()
        }
        write_json(path, {"images": list(self.images), "metrics": metrics})

    @classmethod
    def read(cls, path: Path) -> "ByImage | None":
        """Read what ``write`` wrote; None if the file is missing or damaged."""
        try:
            content: Any = read_object(path)
            sums, counts = (
                {name: np.array(of[part], np.float64) for name, of in content["metrics"].items()}
                for part in ("sums", "counts")
            )
            images = [str(image) for image in content["images"]]
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        sizes = {each.shape for each in (*sums.values(), *counts.values())}
        return cls(images, sums, counts) if sizes <= {(len(images),)} else None
