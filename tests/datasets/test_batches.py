"""Batches: every question once per epoch, and equal work for batches and processes."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from lavis_ext.datasets.samplers import BatchRows, EvalBatches, TrainBatches

IMAGES = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 9, 40))
"""The image of each of 180 or so questions, up to 8 an image."""
QUESTIONS = len(IMAGES)


def train_batches(
    batch_size: int = 16,
    examples_per_image: int = 4,
    seed: int = 1,
    rank: int = 0,
    world_size: int = 1,
    images: np.ndarray = IMAGES,
    images_per_batch: int | None = None,
) -> TrainBatches:
    return TrainBatches(
        images,
        batch_size=batch_size,
        examples_per_image=examples_per_image,
        seed=seed,
        rank=rank,
        world_size=world_size,
        images_per_batch=images_per_batch,
    )


def epoch_rows(batches: TrainBatches | EvalBatches) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


SETTINGS = list(product([1, 7, 16, 1000], [1, 3, 8, 100], [1, 2, 3, 7]))
SKEWED = np.repeat(np.arange(60), [168, 90, *[40] * 4, *[13] * 24, *[2] * 10, *[1] * 20])
"""A few images with most of the questions, and many with one each."""


def global_batches(world_size: int = 1, **settings: Any) -> list[list[BatchRows]]:
    """The shares of all processes, batch by batch."""
    ranks = [train_batches(rank=r, world_size=world_size, **settings) for r in range(world_size)]
    shares = [list(batches) for batches in ranks]
    assert {len(batches) for batches in ranks} == {len(share) for share in shares}
    return [list(batch) for batch in zip(*shares, strict=True)]


def rows_of(batch: list[BatchRows]) -> np.ndarray:
    return np.concatenate([share.rows for share in batch])


@pytest.mark.parametrize("images", [IMAGES, SKEWED])
@pytest.mark.parametrize(("batch_size", "examples_per_image", "world_size"), SETTINGS)
def test_every_question_is_used_once_per_epoch_for_any_number_of_processes(
    batch_size: int, examples_per_image: int, world_size: int, images: np.ndarray
) -> None:
    batches = global_batches(
        world_size, batch_size=batch_size, examples_per_image=examples_per_image, images=images
    )
    for batch in batches:
        assert min(len(share.rows) for share in batch) >= 1
        assert {share.global_size for share in batch} == {len(rows_of(batch))}
    rows = np.concatenate([rows_of(batch) for batch in batches])
    assert sorted(rows) == list(range(len(images)))


def test_processes_share_the_global_batches_of_one() -> None:
    """12 images per batch, divisible among 1, 2, 3 and 4 processes."""
    images = np.repeat(np.arange(240), 4)
    found = {}
    for world in (1, 2, 3, 4):
        batches = global_batches(world, batch_size=48 // world, images=images)
        found[world] = [sorted(rows_of(batch).tolist()) for batch in batches]
        for batch in batches:
            assert [len(np.unique(images[share.rows])) for share in batch] == [12 // world] * world
    assert found[1] == found[2] == found[3] == found[4]
    assert len(found[1]) == 20


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("images", "batch_size"), [(SKEWED, 32), (SKEWED, 16), (IMAGES, 8)])
def test_batches_and_processes_have_equal_images_and_nearly_equal_questions(
    images: np.ndarray, batch_size: int, world_size: int
) -> None:
    batches = global_batches(world_size, batch_size=batch_size, examples_per_image=8, images=images)
    runs = [1 + np.count_nonzero(np.diff(images[s.rows])) for batch in batches for s in batch]
    # Two groups of one image may meet in a batch, and are then one image to encode.
    assert max(runs) - min(runs) <= 2
    assert np.median(runs) == max(runs)
    questions = np.array([len(rows_of(batch)) for batch in batches])
    assert questions.max() - questions.min() <= 8
    assert questions.mean() == pytest.approx(batch_size * world_size, rel=0.25)
    shares = np.array([[len(share.rows) for share in batch] for batch in batches])
    assert (shares.max(axis=1) - shares.min(axis=1)).max() <= 8


def test_batches_that_no_group_can_be_divided_for_differ_by_one() -> None:
    """35 images with a question each for 4 processes: groups of one can't be divided."""
    batches = global_batches(4, batch_size=2, examples_per_image=1, images=np.arange(35))
    sizes = [sorted(len(share.rows) for share in batch) for batch in batches]
    assert sizes == [[1, 2, 2, 2]] * 5


@pytest.mark.parametrize("examples_per_image", [1, 4])
def test_epochs_and_seeds_differ_and_repeat(examples_per_image: int) -> None:
    batches = train_batches(examples_per_image=examples_per_image)
    first, again = epoch_rows(batches), epoch_rows(batches)
    batches.epoch = 1
    assert first == again
    assert epoch_rows(batches) != first
    assert {batch.epoch for batch in batches} == {1}
    other = train_batches(examples_per_image=examples_per_image, seed=2)
    assert epoch_rows(other) != first


def test_questions_of_an_image_stand_together_and_are_regrouped_each_epoch() -> None:
    batches = train_batches(examples_per_image=3)
    counts = np.bincount(IMAGES)
    encoded = sum(len(np.unique(IMAGES[batch.rows])) for batch in batches)
    # As few groups as three at a time allow, but for those that make batches equal.
    assert encoded <= sum(-(-count // 3) for count in counts) + 8

    def partners(epoch: int) -> set[tuple[int, int]]:
        batches.epoch = epoch
        pairs = [(a, b) for rows in epoch_rows(batches) for a, b in product(rows, rows)]
        return {(a, b) for a, b in pairs if a < b and IMAGES[a] == IMAGES[b]}

    assert partners(0) != partners(1)


def test_an_images_questions_are_divided_evenly() -> None:
    """17 questions, at most 16 at a time, are split into 9 and 8, not 16 and 1."""
    images = np.repeat(np.arange(8), 17)
    batches = train_batches(batch_size=16, examples_per_image=16, images=images)
    found = [np.bincount(images[rows]).max() for rows in epoch_rows(batches)]
    assert max(found) <= 9


@pytest.mark.parametrize(("batch_size", "world_size"), product([1, 7, 64, 1000], [1, 2, 3]))
def test_evaluation_sees_every_question_once_over_all_processes(
    batch_size: int, world_size: int
) -> None:
    images = IMAGES[np.random.default_rng(1).permutation(QUESTIONS)]
    seen: list[int] = []
    for rank in range(world_size):
        batches = EvalBatches(images, batch_size=batch_size, rank=rank, world_size=world_size)
        found = epoch_rows(batches)
        assert len(found) == len(batches)
        assert max(map(len, found)) <= batch_size
        for rows, following in pairwise(found):
            whole = images[rows[-1]] != images[following[0]]
            assert whole or len(np.unique(images[rows])) == 1, "an image is divided needlessly"
        assert [batch.global_size for batch in batches] == [len(rows) for rows in found]
        seen += [row for rows in found for row in rows]
    assert sorted(seen) == list(range(QUESTIONS))
    assert (np.diff(images[seen]) >= 0).all(), "an image's questions are encoded together"


@pytest.mark.parametrize(("images_per_batch", "world_size"), product([1, 3, 8], [1, 2]))
def test_batches_are_bounded_by_images_too(images_per_batch: int, world_size: int) -> None:
    """With one question per image, a batch of 64 questions would have 64 images."""
    images = np.arange(240)
    bounds = {"images_per_batch": images_per_batch, "world_size": world_size}
    batches = global_batches(batch_size=64, images=images, **bounds)
    assert max(len(share.rows) for batch in batches for share in batch) == images_per_batch
    rows = np.concatenate([rows_of(batch) for batch in batches])
    assert sorted(rows) == images.tolist()
    for rank in range(world_size):
        evaluated = epoch_rows(EvalBatches(IMAGES, batch_size=64, rank=rank, **bounds))
        assert max(len(np.unique(IMAGES[rows])) for rows in evaluated) <= images_per_batch
