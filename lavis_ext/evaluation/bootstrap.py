"""Confidence intervals of metrics by bootstrapping images (Efron, 1979)."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[np.float64]
"""A metric's value for each question [N]; NaN if it doesn't apply."""
Codes: TypeAlias = npt.NDArray[np.intp]
Name = TypeVar("Name", bound=Hashable)

RESAMPLES = 1000
FEWEST_RESAMPLES = 100
"""Fewer give unreliable percentiles, and may all lack some kind of question."""
LEVEL = 0.95
INTERVALS = "Intervals: bootstrap over images, Wilson's where a share is 0 or 100 %."
"""Explanation for readers."""
AT_ONCE = 100
"""Resamples in memory at a time."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value with its interval.

    Attributes:
        value: usually a share in [0, 1]; GQA's ``grounding`` can exceed 1, and ``distribution`` is
            a non-negative statistic.
        count: number of questions that it applies to.
        low, high: interval; None if not requested.
    """

    value: float
    count: int
    low: float | None = None
    high: float | None = None


def mean_scores(
    values: Mapping[Name, Values], image_ids: Sequence[str], resamples: int, seed: int
) -> dict[Name, Score]:
    """Mean of each metric's values [N], with intervals over images unless ``resamples`` is 0.

    Metrics that apply to no question are left out.
    """
    images = image_codes(image_ids)
    size = len(set(image_ids))
    sums = {name: sums_by_image(images, each, size) for name, each in values.items()}
    sums = {name: each for name, each in sums.items() if each[1].any()}
    scores = {
        name: Score(float(total.sum() / count.sum()), int(count.sum()))
        for name, (total, count) in sums.items()
    }
    if not (resamples and sums):
        return scores
    totals, counts = (np.stack(part, axis=1) for part in zip(*sums.values(), strict=True))
    means = []
    for weights in resampled_images(size, resamples, seed):
        with np.errstate(invalid="ignore"):  # a kind of question missing from the resample
            means.append((weights @ totals) / (weights @ counts))
    for name, samples in zip(sums, np.concatenate(means).T, strict=True):
        low, high = interval_of(scores[name].value, samples, int(np.count_nonzero(sums[name][1])))
        scores[name] = replace(scores[name], low=low, high=high)
    return scores


def mean_difference(
    a: Values, b: Values, image_ids: Sequence[str], resamples: int, seed: int
) -> Score:
    """Mean of ``a`` minus ``b`` [N], values of the same examples, with its interval over images.

    No interval if ``resamples`` is 0.
    """
    difference = a - b
    found = Score(float(difference.mean()), len(difference))
    if not resamples:
        return found
    images = image_codes(image_ids)
    sums, counts = sums_by_image(images, difference, len(set(image_ids)))
    draws = resampled_images(len(sums), resamples, seed)
    means = np.concatenate([(weights @ sums) / (weights @ counts) for weights in draws])
    low, high = percentile_interval(means)
    return replace(found, low=low, high=high)


def image_codes(image_ids: Sequence[str]) -> Codes:
    """Consecutive image numbers [N] from 0 for each question's image."""
    return np.unique(np.array(image_ids), return_inverse=True)[1]


def resampled_images(images: int, resamples: int, seed: int) -> Iterator[Values]:
    """Yield image counts [up to ``AT_ONCE``, images] of ``resamples`` resamples.

    Each resample draws all images with replacement. Questions about the same image are correlated,
    so drawing questions would give intervals that are too narrow. The same arguments give the same
    draws, so two sets of predictions of the same questions are paired.
    """
    rng = np.random.default_rng(seed)
    chances = np.full(images, 1 / images)
    for start in range(0, resamples, AT_ONCE):
        yield rng.multinomial(images, chances, min(AT_ONCE, resamples - start)).astype(np.float64)


def sums_by_image(images: Codes, values: Values, size: int) -> tuple[Values, Values]:
    """Sum and number of a metric's values [N] for each of ``size`` images."""
    sums = np.bincount(images, np.nan_to_num(values), size)
    counts = np.bincount(images, (~np.isnan(values)).astype(np.float64), size)
    return sums.astype(np.float64), counts.astype(np.float64)


def interval_of(share: float, samples: npt.NDArray[np.float64], images: int) -> tuple[float, float]:
    """Interval of a share from its resampled values [B], or where it is 0 or 1, Wilson's.

    Resamples of values that are all alike don't differ, but a few of them prove little. The trials
    of Wilson's interval (1927) are ``images``, since questions about one image are correlated.
    """
    if share not in (0.0, 1.0):
        return percentile_interval(samples)
    # Imported here because it takes a second.
    from scipy.stats import binomtest

    found = binomtest(round(share * images), images).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def percentile_interval(
    samples: npt.NDArray[np.float64], level: float = LEVEL
) -> tuple[float, float]:
    """Central interval with probability ``level`` of resampled values [B], without NaN."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return float(low), float(high)
