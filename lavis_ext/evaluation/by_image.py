"""Sums of metrics by image: what comparing runs needs of their evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        blind: the same of a question-only answerer, for the metrics that it has; None for none.
    """

    images: Sequence[str]
    sums: Mapping[str, Values]
    counts: Mapping[str, Values]
    blind: "ByImage | None" = None

    @classmethod
    def of(
        cls,
        values: Mapping[str, Values],
        image_ids: Sequence[str],
        blind: Mapping[str, Values] | None = None,
    ) -> "ByImage":
        """Sum metric values [N], NaN where a metric doesn't apply, of examples by image."""
        images = sorted(set(image_ids))
        codes = image_codes(image_ids)
        pairs = {name: sums_by_image(codes, each, len(images)) for name, each in values.items()}
        return cls(
            images,
            {name: sums for name, (sums, _) in pairs.items()},
            {name: counts for name, (_, counts) in pairs.items()},
            None if blind is None else cls.of(blind, image_ids),
        )

    def mean(self, metric: str) -> float:
        """A metric over all images."""
        return float(self.sums[metric].sum() / self.counts[metric].sum())

    def write(self, path: Path) -> None:
        """Write to a JSON file. Raises OSError on failure."""
        content = {"images": list(self.images), "metrics": _lists(self)}
        if self.blind is not None:
            content["blind"] = _lists(self.blind)
        write_json(path, content)

    @classmethod
    def read(cls, path: Path) -> "ByImage | None":
        """Read what ``write`` wrote; None if the file is missing or damaged."""
        try:
            content: Any = read_object(path)
            images = [str(image) for image in content["images"]]
            blind = _read(images, content["blind"]) if "blind" in content else None
            return replace(_read(images, content["metrics"]), blind=blind)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None


def _lists(values: ByImage) -> dict[str, Any]:
    return {
        name: {"sums": sums.tolist(), "counts": values.counts[name].astype(int).tolist()}
        for name, sums in values.sums.items()
    }


def _read(images: Sequence[str], metrics: Any) -> ByImage:
    """Inverse of ``_lists``. Raises ValueError if it isn't of these images."""
    sums, counts = (
        {name: np.array(of[part], np.float64) for name, of in metrics.items()}
        for part in ("sums", "counts")
    )
    sizes = {each.shape for each in (*sums.values(), *counts.values())}
    if not sizes <= {(len(images),)}:
        raise ValueError("of other images")
    return ByImage(images, sums, counts)
