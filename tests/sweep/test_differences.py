"""Paired differences: their intervals cover what they are said to be over."""

import numpy as np
import pytest

from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.sweep.differences import Repetition, paired_difference

IMAGES = 200
NAME = "accuracy"


def repetition(right: Values, images: list[str] | None = None) -> Repetition:
    """A run with an example an image, answered right or wrong."""
    names = images or [f"{n:04d}" for n in range(len(right))]
    return Repetition(float(right.mean()), ByImage.of({NAME: right}, names))


def outcomes(rng: np.random.Generator, share: float, size: int = IMAGES) -> Values:
    return (rng.random(size) < share).astype(np.float64)


def test_the_same_predictions_differ_by_nothing() -> None:
    right = outcomes(np.random.default_rng(0), 0.6)
    found = paired_difference({"": repetition(right)}, {"": repetition(right)}, NAME)
    assert found is not None
    assert (found.value, found.low, found.high, found.over) == (0, 0, 0, "images")


def test_pairing_by_image_makes_the_interval_narrow() -> None:
    """B answers all that A does, and 10 images more: an unpaired interval would hold 0."""
    first = outcomes(np.random.default_rng(0), 0.6)
    other = first.copy()
    other[np.flatnonzero(first == 0)[:10]] = 1
    found = paired_difference({"": repetition(first)}, {"": repetition(other)}, NAME)
    assert found is not None
    assert found.value == pytest.approx(10 / IMAGES)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high < 0.1


def test_without_metrics_by_image_the_interval_is_students_over_seeds() -> None:
    rng = np.random.default_rng(0)
    deltas = rng.normal(0.1, 0.05, 12)
    first = {str(n): Repetition(0.5) for n in range(12)}
    other = {str(n): Repetition(0.5 + delta) for n, delta in enumerate(deltas)}
    found = paired_difference(first, other, NAME)
    assert found is not None
    assert found.over == "seeds"
    half = 2.201 * deltas.std(ddof=1) / np.sqrt(12)  # Student's t with 11 degrees of freedom
    assert found.high is not None
    assert found.low is not None
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_a_single_seed_without_metrics_by_image_has_no_interval() -> None:
    found = paired_difference({"1": Repetition(0.5)}, {"1": Repetition(0.6)}, NAME)
    assert found is not None
    assert (found.low, found.high, found.over) == (None, None, "")


def test_only_shared_seeds_are_compared() -> None:
    first = {"1": Repetition(0.5), "2": Repetition(0.9)}
    found = paired_difference(first, {"1": Repetition(0.6), "3": Repetition(0.1)}, NAME)
    assert found is not None
    assert (found.value, found.seeds) == (pytest.approx(0.1), 1)
    assert paired_difference(first, {"3": Repetition(0.1)}, NAME) is None


def test_seeds_may_have_drawn_different_images_but_both_runs_of_one_the_same() -> None:
    rng = np.random.default_rng(0)
    samples = {seed: [f"{seed}{n}" for n in range(IMAGES)] for seed in "12"}
    first, other = (
        {seed: repetition(outcomes(rng, share), samples[seed]) for seed in "12"}
        for share in (0.5, 0.7)
    )
    found = paired_difference(first, other, NAME)
    assert found is not None
    assert found.over == "images and seeds"
    other["2"] = repetition(outcomes(rng, 0.7), samples["1"])
    found = paired_difference(first, other, NAME)
    assert found is not None
    assert found.over == "seeds"


def test_the_interval_over_images_and_seeds_holds_the_truth_as_often_as_it_says() -> None:
    """Both vary: images by their difficulty for B, seeds by their luck."""
    rng = np.random.default_rng(0)
    truth, held = 0.1, 0
    for _ in range(100):
        by_image = rng.normal(truth, 0.4, IMAGES)
        first, other = {}, {}
        for seed in range(5):
            base = rng.normal(0.5, 0.3, IMAGES)
            luck = rng.normal(0, 0.03)
            first[str(seed)] = repetition(base)
            other[str(seed)] = repetition(base + by_image + luck + rng.normal(0, 0.2, IMAGES))
        found = paired_difference(first, other, NAME)
        assert found is not None
        assert found.over == "images and seeds"
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 90, held
