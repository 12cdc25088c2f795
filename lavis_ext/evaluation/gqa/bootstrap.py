"""How far a metric would move on another sample of images: the bootstrap (Efron, 1979)."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lavis_ext.evaluation.gqa.accuracy import Values
from lavis_ext.evaluation.gqa.distribution import Codes

RESAMPLES = 1000
FEWEST_RESAMPLES = 100
"""With fewer, the percentiles mean little, and a kind of question may be in none of them."""
LEVEL = 0.95
AT_ONCE = 100
"""Resamples that are held at a time."""


def image_codes(image_ids: Sequence[str]) -> Codes:
    """A number for each question's image [N], from 0 on without gaps."""
    return np.unique(np.array(image_ids), return_inverse=True)[1]


def resampled_images(images: int, resamples: int, seed: int) -> Iterator[Values]:
    """How often each image is drawn, [at most ``AT_ONCE``, images], until there are ``resamples``.

    Images are drawn with replacement, as many as there are. Questions about one image are alike and
    are right or wrong together, so drawing questions would give intervals that are too narrow. The
    same arguments give the same draws, which is what pairs two predictions of the same questions.
    """
    rng = np.random.default_rng(seed)
    chances = np.full(images, 1 / images)
    for start in range(0, resamples, AT_ONCE):
        yield rng.multinomial(images, chances, min(AT_ONCE, resamples - start)).astype(np.float64)


def sums_by_image(images: Codes, values: Values, size: int) -> tuple[Values, Values]:
    """Of a metric's values [N], for each of ``size`` images their sum and their number."""
    sums = np.bincount(images, np.nan_to_num(values), size)
    counts = np.bincount(images, (~np.isnan(values)).astype(np.float64), size)
    return sums.astype(np.float64), counts.astype(np.float64)


def percentile_interval(
    samples: npt.NDArray[np.float64], level: float = LEVEL
) -> tuple[float, float]:
    """The middle ``level`` of the resampled values [B]; NaN are left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return float(low), float(high)
