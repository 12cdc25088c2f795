"""Batches of several data sets: their ratios, and equal continuation from any batch."""

from itertools import islice

import numpy as np

from lavis_ext.datasets.mixed import MixedBatches
from lavis_ext.datasets.samplers import BatchRows, TrainBatches


def made(ratios: list[float] | None = None) -> MixedBatches:
    """One data set of 40 examples and one of 12, in batches of four: ten and three an epoch."""
    batches = [
        TrainBatches(np.arange(size), batch_size=4, examples_per_image=1, seed=3)
        for size in (40, 12)
    ]
    return MixedBatches(batches, ratios, seed=3)


def epoch(batches: MixedBatches, number: int, start: int = 0) -> list[tuple[int, list[int]]]:
    batches.epoch, batches.start = number, start
    return [summary(batch) for batch in batches]


def summary(batch: BatchRows) -> tuple[int, list[int]]:
    return batch.source, batch.rows.tolist()


def rows_of(epochs: list[list[tuple[int, list[int]]]], source: int) -> list[int]:
    return [row for each in epochs for of, rows in each for row in rows if of == source]


def test_without_ratios_each_example_comes_once_an_epoch() -> None:
    found = [epoch(made(), 0)]
    assert len(found[0]) == len(made()) == 13
    assert sorted(rows_of(found, 0)) == list(range(40))
    assert sorted(rows_of(found, 1)) == list(range(12))
    assert found[0] != epoch(made(), 1), "another order"


def test_ratios_are_shares_of_the_batches_and_no_example_is_skipped() -> None:
    batches = made([1.0, 1.0])
    found = [epoch(batches, number) for number in range(3)]
    for each in found:
        counts = np.bincount([source for source, _ in each])
        assert abs(int(counts[0]) - int(counts[1])) <= 1
    # The larger data set continues where it stopped: its first forty examples are all different.
    assert sorted(rows_of(found, 0)[:40]) == list(range(40))
    # The smaller one starts over: each of its passes has every example.
    small = rows_of(found, 1)
    for start in range(0, len(small) - 12 + 1, 12):
        assert sorted(small[start : start + 12]) == list(range(12))


def test_the_rest_of_an_epoch_is_the_same_from_any_batch_on() -> None:
    for ratios in (None, [1.0, 3.0]):
        whole = epoch(made(ratios), 2)
        for start in (1, 5, len(whole) - 1):
            assert epoch(made(ratios), 2, start) == whole[start:]
        batches = made(ratios)
        batches.epoch = 2
        list(islice(iter(batches), 4))  # a pass that was given up
        assert epoch(batches, 2) == whole


def test_layouts_differ_where_batches_do() -> None:
    assert made().layout == made().layout
    assert made().layout != made([1.0, 3.0]).layout
