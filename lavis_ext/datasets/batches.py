"""Which questions go into which batch, for every epoch, process and batch.

The order is a function of seed and epoch alone: the same global batches come out whatever the
number of processes, and every question is used exactly once an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

Rows = npt.NDArray[np.integer]


@dataclass(frozen=True)
class BatchRows:
    """One process's share of a global batch.

    ``global_size`` counts the questions of all processes: losses are divided by it, so that
    processes with unequal shares (the last batch) weigh each question the same.
    """

    rows: Rows
    epoch: int
    global_size: int


class TrainBatches(Sampler[BatchRows]):
    """Shuffled batches in which the questions of an image stand beside each other.

    Args:
        image_codes: integers [rows], equal for the questions of one image.
        batch_size: questions a process.
        questions_per_image: at most so many questions of an image stand together; with 1 the
            order is a plain shuffle. The images of a batch are encoded once for all of theirs.
        seed: the run's seed.
        rank, world_size: this process and how many there are.
    """

    def __init__(
        self,
        image_codes: Rows,
        *,
        batch_size: int,
        questions_per_image: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._image_codes = image_codes
        self._questions_per_image = questions_per_image
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._global_batch_size = batch_size * world_size
        self.epoch = 0

    def __len__(self) -> int:
        """Batches an epoch, the same for every process."""
        return len(self._cuts()) + 1

    def __iter__(self) -> Iterator[BatchRows]:
        for rows in np.split(self.order(self.epoch), self._cuts()):
            share = np.array_split(rows, self._world_size)[self._rank]
            yield BatchRows(share, self.epoch, len(rows))

    def order(self, epoch: int) -> Rows:
        """All rows in the order in which ``epoch`` uses them, integers [rows]."""
        random = np.random.default_rng([self._seed, epoch])
        count = len(self._image_codes)
        if self._questions_per_image == 1:
            return random.permutation(count)
        by_image = np.lexsort((random.random(count), self._image_codes)).astype(np.int32)
        codes = self._image_codes[by_image]
        first = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        groups = -(-np.diff(np.r_[first, count]) // self._questions_per_image)  # of each image
        starts = np.repeat(first, groups) + self._questions_per_image * _counted_anew(groups)
        order = np.argsort(random.permutation(len(starts)))
        sizes = np.diff(np.r_[starts, count])[order]
        ends = np.cumsum(sizes)
        # Of millions of rows every array counts: they are 32 bits wide, and few at a time.
        places = np.repeat((starts[order] - ends + sizes).astype(np.int32), sizes)
        places += np.arange(count, dtype=np.int32)
        return by_image[places]

    def _cuts(self) -> Rows:
        """Where one global batch ends and the next begins."""
        count = len(self._image_codes)
        cuts = np.arange(self._global_batch_size, count, self._global_batch_size)
        # A last batch with fewer questions than processes would leave a process without any.
        return cuts[count - cuts >= self._world_size]


def _counted_anew(sizes: Rows) -> Rows:
    """0, 1, ... up to each of ``sizes``, one after another."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


class EvalBatches(Sampler[BatchRows]):
    """Every row once, over all processes, in the order of the images; nothing is padded."""

    def __init__(
        self, image_codes: Rows, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        order = np.argsort(image_codes, kind="stable")
        self._rows = np.array_split(order, world_size)[rank]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[BatchRows]:
        for start in range(0, len(self._rows), self._batch_size):
            rows = self._rows[start : start + self._batch_size]
            yield BatchRows(rows, epoch=0, global_size=len(rows))
