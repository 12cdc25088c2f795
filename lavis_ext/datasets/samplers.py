"""Samplers that assign examples to batches, by epoch and process.

A batch's cost is mostly that of its images: each is encoded and fused once for all of its examples.
So batches have equal numbers of images, and nearly equal numbers of examples. The order depends
only on seed and epoch, and every example is used exactly once per epoch.
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

    ``global_size`` is the number of examples over all processes; losses are divided by it, so that
    all examples have the same weight even in unequal shares. Examples may be skipped only in
    ``training``.
    """

    rows: Rows
    epoch: int
    global_size: int
    training: bool = False
    source: int = 0
    """Index of the data set of ``rows`` in runs with several data sets."""


class TrainBatches(Sampler[BatchRows]):
    """Shuffled batches of groups; a group is shuffled examples about one image.

    An image with more examples than ``examples_per_image`` has several groups of nearly equal
    size. A global batch has the number of groups that gives ``batch_size`` examples per process on
    average, rounded to a multiple of ``world_size``. Groups are split if necessary so that, where
    possible, all batches and processes have equally many. Any number of processes that divides this
    number sees the same global batches.

    Args:
        image_codes: integers [rows], equal for examples about the same image.
        batch_size: examples per process, on average over an epoch's batches.
        examples_per_image: maximum size of a group, capped at ``batch_size``; 1 is a plain shuffle.
        images_per_batch: maximum number of images per process and batch, even if that makes batches
            smaller than ``batch_size``.
        seed: seed of the run.
        rank, world_size: this process, and the number of processes, at most the number of rows.

    Attributes:
        epoch: the current epoch.
        start: batches to skip at the start of the epoch.
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
        images_per_batch: int | None = None,
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
        self._batches = self._share_out(batch_size * world_size, images_per_batch)

    def __len__(self) -> int:
        """Batches per epoch, the same for every process."""
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

    @property
    def mean_size(self) -> tuple[float, float]:
        """Mean numbers of examples and of images (groups) per process and batch."""
        shares = self._batches * self._world_size
        return len(self._image_codes) / shares, len(self._sizes) / shares

    @cached_property
    def layout(self) -> str:
        """Digest that is equal for samplers with the same global batches in every epoch."""
        digest = blake2b(f"{self._seed} {self._batches}".encode(), digest_size=16)
        for part in (self._image_codes, self._sizes):
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()

    def _share_out(self, examples_a_batch: int, images_per_batch: int | None) -> int:
        """Split groups so that all batches have equally many; returns the number of batches."""
        count, groups, world = len(self._image_codes), len(self._sizes), self._world_size
        wanted = examples_a_batch * groups / count
        a_batch = world * max(1, min(round(wanted / world), images_per_batch or groups))
        batches = -(-groups // a_batch)
        # A small number of batches may need fewer groups each.
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
        """All rows, grouped by image and shuffled within each image."""
        count = len(self._image_codes)
        if len(self._sizes) == count:  # each is a group by itself
            return np.arange(count, dtype=np.int32)
        # For millions of rows, memory matters: few arrays at a time, of 32 bits.
        return np.lexsort((random.random(count), self._image_codes)).astype(np.int32)


def _in_parts(sizes: Rows, parts: Rows) -> Rows:
    """Divide each of ``sizes`` into its number of nearly equal ``parts``, in order."""
    place = np.arange(parts.sum(), dtype=np.int32) - np.repeat(np.cumsum(parts) - parts, parts)
    larger = place < np.repeat(sizes % parts, parts)
    return np.repeat(sizes // parts, parts) + larger.astype(np.int32)


def _dealt(items: Rows, piles: int) -> Rows:
    """Deal items, in order of size, to piles in alternating directions.

    Each column is a pile, padded with NOTHING. Piles differ by at most one item and have similar
    total sizes.
    """
    deals = -(-len(items) // piles)
    grid = np.full((deals, piles), NOTHING, dtype=items.dtype)
    grid.reshape(-1)[: len(items)] = items
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid


class EvalBatches(Sampler[BatchRows]):
    """Yields every row once over all processes, ordered by image, without padding.

    A batch ends at the end of an image, unless the image has more than ``batch_size`` examples. It
    has at most ``images_per_batch`` images.
    """

    def __init__(
        self,
        image_codes: Rows,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        images_per_batch: int | None = None,
    ) -> None:
        order = np.argsort(image_codes, kind="stable")
        self._rows = np.array_split(order, world_size)[rank]
        codes = image_codes[self._rows]
        image_ends = np.r_[0, np.flatnonzero(codes[1:] != codes[:-1]) + 1, len(codes)]
        self._cuts = [0]
        while (start := self._cuts[-1]) < len(codes):
            furthest = min(start + batch_size, len(codes))
            if images_per_batch is not None:
                image = int(np.searchsorted(image_ends, start, side="right")) - 1
                last = min(image + images_per_batch, len(image_ends) - 1)
                furthest = min(furthest, int(image_ends[last]))
            end = int(image_ends[np.searchsorted(image_ends, furthest, side="right") - 1])
            self._cuts.append(end if end > start else furthest)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __iter__(self) -> Iterator[BatchRows]:
        for start, end in pairwise(self._cuts):
            rows = self._rows[start:end]
            yield BatchRows(rows, epoch=0, global_size=len(rows))
