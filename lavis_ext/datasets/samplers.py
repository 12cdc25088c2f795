"""Which examples go into which batch, for every epoch, process and batch.

What a batch costs is mostly its images: each is encoded and fused once, for all of its examples.
So batches have equal numbers of images, and nearly equal numbers of examples. The order is a
function of seed and epoch alone, and every example is used exactly once an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

Rows = npt.NDArray[np.integer]
NOTHING = -1


@dataclass(frozen=True)
class BatchRows:
    """One process's share of a global batch.

    ``global_size`` counts the examples of all processes: losses are divided by it, so that
    processes with unequal shares weigh each example the same. In ``training``, and only there,
    examples may be left out.
    """

    rows: Rows
    epoch: int
    global_size: int
    training: bool = False
    source: int = 0
    """Place of the data set that ``rows`` are of, in a run with several."""


class TrainBatches(Sampler[BatchRows]):
    """Shuffled batches of groups; a group is examples about one image, in an order drawn anew.

    An image with more examples than ``examples_per_image`` has several groups of nearly equal
    size. A global batch has as many groups as make ``batch_size`` examples a process on average,
    and a multiple of ``world_size``; wherever groups can be divided in two to that end, all batches
    of an epoch have the same number, and all processes. Any number of processes that divides it
    sees the same global batches.

    Args:
        image_codes: integers [rows], equal for the examples about one image.
        batch_size: examples a process, on average over an epoch's batches.
        examples_per_image: at most so many examples about an image stand together, but no more than
            ``batch_size``; with 1 the order is a plain shuffle.
        seed: the run's seed.
        rank, world_size: this process and how many there are; at most one for each row.

    Attributes:
        epoch: the epoch whose order is used.
        start: batches at the start of the epoch that are left out.
    """

    def __init__(
        self,
        image_codes: Rows,
        *,
        batch_size: int,
        examples_per_image: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._image_codes = image_codes
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.epoch = 0
        self.start = 0
        counts = np.bincount(image_codes).astype(np.int32)
        counts = counts[counts > 0]
        together = min(examples_per_image, batch_size)
        self._sizes = _in_parts(counts, -(-counts // together))
        self._batches = self._share_out(batch_size * world_size)

    def __len__(self) -> int:
        """Batches an epoch, the same for every process."""
        return self._batches

    def __iter__(self) -> Iterator[BatchRows]:
        random = np.random.default_rng([self._seed, self.epoch])
        by_image = self._by_image(random)
        ends = np.cumsum(self._sizes, dtype=np.int32)
        order = random.permutation(np.arange(len(self._sizes), dtype=np.int32))
        order = order[np.argsort(-self._sizes[order], kind="stable")]
        piles = _dealt(order, self._batches)
        for batch in random.permutation(self._batches)[self.start :]:
            groups = piles[:, batch]
            groups = groups[groups != NOTHING]
            share = _dealt(groups, self._world_size)[:, self._rank]
            rows = [
                by_image[ends[group] - self._sizes[group] : ends[group]]
                for group in share[share != NOTHING]
            ]
            size = int(self._sizes[groups].sum())
            yield BatchRows(np.concatenate(rows), self.epoch, size, training=True)

    @cached_property
    def layout(self) -> str:
        """A digest, equal for samplers whose global batches are the same in every epoch."""
        digest = blake2b(f"{self._seed} {self._batches}".encode(), digest_size=16)
        for part in (self._image_codes, self._sizes):
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()

    def _share_out(self, examples_a_batch: int) -> int:
        """How many batches there are; groups are divided so that each has equally many."""
        count, groups, world = len(self._image_codes), len(self._sizes), self._world_size
        wanted = examples_a_batch * groups / count
        a_batch = world * max(1, round(wanted / world))
        batches = -(-groups // a_batch)
        # Where there are few batches, each may do with fewer groups.
        a_batch = world * -(-groups // (batches * world))
        lacking = batches * a_batch - groups
        if lacking > count - groups:
            return max(1, min(batches, groups // world))
        while lacking:
            largest = np.argsort(self._sizes, kind="stable")[-lacking:]
            parts = np.ones_like(self._sizes)
            parts[largest] += self._sizes[largest] > 1
            self._sizes = _in_parts(self._sizes, parts)
            lacking -= int(parts.sum()) - len(parts)
        return batches

    def _by_image(self, random: np.random.Generator) -> Rows:
        """All rows, those of an image beside each other in an order drawn anew."""
        count = len(self._image_codes)
        if len(self._sizes) == count:  # each is a group by itself
            return np.arange(count, dtype=np.int32)
        # Of millions of rows every array counts: they are 32 bits wide, and few at a time.
        return np.lexsort((random.random(count), self._image_codes)).astype(np.int32)


def _in_parts(sizes: Rows, parts: Rows) -> Rows:
    """Each of ``sizes`` in so many nearly equal ``parts``, one after another."""
    place = np.arange(parts.sum(), dtype=np.int32) - np.repeat(np.cumsum(parts) - parts, parts)
    larger = place < np.repeat(sizes % parts, parts)
    return np.repeat(sizes // parts, parts) + larger.astype(np.int32)


def _dealt(items: Rows, piles: int) -> Rows:
    """Items in order of size, dealt to and fro: one pile a column, filled up with NOTHING.

    The numbers of items in two piles differ by one at most, and their sizes add up to nearly equal
    sums.
    """
    deals = -(-len(items) // piles)
    grid = np.full((deals, piles), NOTHING, dtype=items.dtype)
    grid.reshape(-1)[: len(items)] = items
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid


class EvalBatches(Sampler[BatchRows]):
    """Every row once, over all processes, in the order of the images; nothing is padded.

    A batch ends where an image does, unless it has more than ``batch_size`` examples.
    """

    def __init__(
        self, image_codes: Rows, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        order = np.argsort(image_codes, kind="stable")
        self._rows = np.array_split(order, world_size)[rank]
        codes = image_codes[self._rows]
        image_ends = np.r_[0, np.flatnonzero(codes[1:] != codes[:-1]) + 1, len(codes)]
        self._cuts = [0]
        while (start := self._cuts[-1]) < len(codes):
            furthest = min(start + batch_size, len(codes))
            end = int(image_ends[np.searchsorted(image_ends, furthest, side="right") - 1])
            self._cuts.append(end if end > start else furthest)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __iter__(self) -> Iterator[BatchRows]:
        for start, end in pairwise(self._cuts):
            rows = self._rows[start:end]
            yield BatchRows(rows, epoch=0, global_size=len(rows))
