"""Seeded samples of a split: whole images or single examples."""

from dataclasses import dataclass
from typing import Union

import numpy as np

from lavis_ext.datasets.samplers import Rows

IMAGES, EXAMPLES = "images", "examples"
FEWEST_IMAGES = 2
"""Minimum number of images in a sample; mismatched texts need another image."""


@dataclass(frozen=True)
class SampleSize:
    """Size of a seeded sample of a split.

    Attributes:
        amount: number of examples, or share of the split in (0, 1].
        by: ``images`` draws images with all of their examples until there are ``amount`` examples:
            images are most of the cost, and 50 single examples would need up to 50 images.
            ``examples`` draws single examples.
    """

    amount: int | float
    by: str = IMAGES

    @classmethod
    def of(cls, size: Union["SampleSize", int, float, None]) -> "SampleSize | None":
        """Convert ``size`` to a SampleSize; None means the whole split."""
        return size if size is None or isinstance(size, cls) else cls(size)  # type: ignore[arg-type]

    def rows(self, image_codes: Rows, seed: int) -> Rows:
        """Draw the sample's rows, in ascending order.

        Args:
            image_codes: integers from 0 [rows], equal for examples about the same image.
            seed: seed of the draw; the same rows in every process.
        """
        count = len(image_codes)
        random = np.random.default_rng(seed)
        if self.by == EXAMPLES:
            wanted = self._share_of(count)
            if wanted >= count:
                return np.arange(count)
            return np.sort(random.choice(count, size=wanted, replace=False))
        examples = np.bincount(image_codes)
        images = random.permutation(np.flatnonzero(examples))
        if isinstance(self.amount, float):
            taken = self._share_of(len(images))
        else:
            taken = int(np.searchsorted(np.cumsum(examples[images]), self.amount)) + 1
        taken = max(taken, FEWEST_IMAGES)
        chosen = np.zeros(len(examples), bool)
        chosen[images[:taken]] = True
        return np.flatnonzero(chosen[image_codes])

    def _share_of(self, count: int) -> int:
        if isinstance(self.amount, float):
            return max(1, round(self.amount * count))
        return self.amount
