"""Paired differences between two choices, with intervals over images and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from lavis_ext.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    Values,
    percentile_interval,
    resampled_images,
)
from lavis_ext.evaluation.by_image import ByImage

IMAGES_AND_SEEDS, IMAGES, SEEDS, NOTHING = "images and seeds", "images", "seeds", ""
SEED = 0
"""Seed of the resampling, so that the same runs give the same interval."""


@dataclass(frozen=True)
class Repetition:
    """A finished run of a choice.

    Attributes:
        value: the metric's value.
        by_image: the split's metrics by image; None if the run has none.
    """

    value: float
    by_image: ByImage | None = None


@dataclass(frozen=True)
class Difference:
    """Mean difference of a choice from the first one over the seeds that both have.

    Attributes:
        value: the difference.
        seeds: number of seeds.
        over: what the interval is over; empty for none.
        low, high: 95 % interval; None for none.
    """

    value: float
    seeds: int
    over: str = NOTHING
    low: float | None = None
    high: float | None = None


def paired_difference(
    first: Mapping[str, Repetition], other: Mapping[str, Repetition], metric: str
) -> Difference | None:
    """Difference of ``other`` from ``first``, both by seed; None if they share no seed.

    Each resample draws the same images for all runs, and then seeds, both with replacement. Few
    seeds resampled vary too little, so the seeds' part is widened to that of Student's interval
    (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015, section 3.2).
    """
    shared = [seed for seed in first if seed in other]
    if not shared:
        return None
    differences = np.array([other[seed].value - first[seed].value for seed in shared])
    found = Difference(float(differences.mean()), len(shared))
    by_image = _by_image([first[seed] for seed in shared], [other[seed] for seed in shared], metric)
    if by_image is None and len(shared) == 1:
        return found
    samples = np.full(RESAMPLES, found.value)
    if by_image is not None:
        samples = _over_images(*by_image)
    if len(shared) > 1:
        samples = samples + _over_seeds(differences)
    low, high = percentile_interval(samples)
    over = IMAGES_AND_SEEDS if len(shared) > 1 else IMAGES
    if by_image is None:
        over = SEEDS
    return Difference(found.value, found.seeds, over, low, high)


def _over_images(totals: Values, counts: Values) -> Values:
    """Mean differences [R] in resamples of images.

    ``totals`` and ``counts`` [I, 2 K] have the first choice's K runs, then the other's.
    """
    means = []
    for weights in resampled_images(len(totals), RESAMPLES, SEED):
        with np.errstate(invalid="ignore"):  # a kind of example missing from the resample
            means.append((weights @ totals) / (weights @ counts))
    first, other = np.split(np.concatenate(means), 2, axis=1)
    return (other - first).mean(axis=1)


def _over_seeds(differences: Values) -> Values:
    """Deviations [R] of the mean from resampling differences [K] of the seeds, K > 1."""
    count = len(differences)
    tail = (1 + LEVEL) / 2
    widening = np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail) / ndtri(tail)
    rng = np.random.default_rng(SEED + 1)
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    deviations: Values = widening * (drawn @ differences - differences.mean())
    return deviations


def _by_image(
    first: Sequence[Repetition], other: Sequence[Repetition], metric: str
) -> tuple[Values, Values] | None:
    """Sums and counts [I, 2 K] by image, of the first choice's K runs and then the other's.

    Seeds may have drawn different samples of images; an image that a run lacks counts 0. None
    unless all runs have the metric by image, and both runs of each seed have the same images.
    """
    known = [
        run.by_image
        for run in (*first, *other)
        if run.by_image is not None and metric in run.by_image.sums
    ]
    pairs = zip(known, known[len(first) :], strict=False)
    if len(known) < 2 * len(first) or any(a.images != b.images for a, b in pairs):
        return None
    union = np.unique(np.concatenate([each.images for each in known]))
    sums, counts = (np.zeros((len(union), len(known))) for _ in range(2))
    for column, each in enumerate(known):
        rows = np.searchsorted(union, np.array(each.images))
        sums[rows, column], counts[rows, column] = each.sums[metric], each.counts[metric]
    return sums, counts
