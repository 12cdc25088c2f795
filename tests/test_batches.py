"""Batches: each question once an epoch, the same global batches for any number of processes."""

from itertools import product

import numpy as np
import pytest

from lavis_ext.datasets.batches import EvalBatches, TrainBatches

IMAGES = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 9, 40))
"""The image of each of 180 or so questions, up to 8 an image."""
QUESTIONS = len(IMAGES)


def train_batches(
    batch_size: int = 16,
    questions_per_image: int = 4,
    seed: int = 1,
    rank: int = 0,
    world_size: int = 1,
    images: np.ndarray = IMAGES,
) -> TrainBatches:
    return TrainBatches(
        images,
        batch_size=batch_size,
        questions_per_image=questions_per_image,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def epoch_rows(batches: TrainBatches | EvalBatches) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


SETTINGS = list(product([1, 7, 16, 1000], [1, 3, 8, 100], [1, 2, 3, 7]))


@pytest.mark.parametrize(("batch_size", "questions_per_image", "world_size"), SETTINGS)
def test_every_question_is_used_once_an_epoch_whatever_the_processes(
    batch_size: int, questions_per_image: int, world_size: int
) -> None:
    ranks = [
        list(train_batches(batch_size, questions_per_image, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    lengths = {
        len(train_batches(batch_size, questions_per_image, rank=rank, world_size=world_size))
        for rank in range(world_size)
    }
    assert lengths == {len(ranks[0])}
    together = []
    for shares in zip(*ranks, strict=True):
        rows = np.concatenate([share.rows for share in shares])
        assert min(len(share.rows) for share in shares) >= 1
        assert {share.global_size for share in shares} == {len(rows)}
        together.append(rows)
    assert sorted(np.concatenate(together)) == list(range(QUESTIONS))
    one_process = epoch_rows(train_batches(batch_size * world_size, questions_per_image))
    assert np.concatenate(together).tolist() == [row for batch in one_process for row in batch]
    for mine, theirs in zip(together[:-1], one_process, strict=False):
        assert mine.tolist() == theirs


def test_a_last_batch_that_cannot_be_shared_is_merged() -> None:
    images = np.arange(4 * 8 + 3)
    shares = [
        list(train_batches(2, 1, rank=rank, world_size=4, images=images)) for rank in range(4)
    ]
    assert [batch.global_size for batch in shares[0]] == [8, 8, 8, 11]
    assert sum(len(share[-1].rows) for share in shares) == 11
    assert [b.global_size for b in train_batches(8, 1, images=images)] == [8, 8, 8, 8, 3]


@pytest.mark.parametrize("questions_per_image", [1, 4])
def test_epochs_and_seeds_differ_and_repeat(questions_per_image: int) -> None:
    batches = train_batches(questions_per_image=questions_per_image)
    first, again = epoch_rows(batches), epoch_rows(batches)
    batches.epoch = 1
    assert first == again
    assert epoch_rows(batches) != first
    assert {batch.epoch for batch in batches} == {1}
    other = train_batches(questions_per_image=questions_per_image, seed=2)
    assert epoch_rows(other) != first


def test_questions_of_an_image_stand_together_and_are_regrouped_each_epoch() -> None:
    batches = train_batches(questions_per_image=3)
    order = IMAGES[batches.order(0)]
    runs = np.diff(np.r_[0, np.flatnonzero(np.diff(order)) + 1, QUESTIONS])
    counts = np.bincount(IMAGES)
    # As few groups as three at a time allow; two of an image may come to stand beside each other.
    assert len(runs) <= sum(-(-count // 3) for count in counts)
    assert len(runs) < QUESTIONS / 2
    assert order.tolist() != sorted(order.tolist())

    def partners(epoch: int) -> set[tuple[int, int]]:
        rows = batches.order(epoch)
        pairs = zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True)
        return {(a, b) for a, b in pairs if IMAGES[a] == IMAGES[b]}

    assert partners(0) != partners(1)


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
        assert [batch.global_size for batch in batches] == [len(rows) for rows in found]
        seen += [row for rows in found for row in rows]
    assert sorted(seen) == list(range(QUESTIONS))
    assert (np.diff(images[seen]) >= 0).all(), "an image's questions are encoded together"
