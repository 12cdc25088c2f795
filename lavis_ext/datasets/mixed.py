"""Training on several data sets, mixed by ratios."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from lavis_ext.datasets.samplers import BatchRows, TrainBatches


def split_of(name: str) -> str:
    """Split of a data set's name: ``val`` for ``val`` and for ``NAME.val``."""
    return name.rpartition(".")[2]


class MixedDataset(Dataset[Any]):
    """Combines data sets; each batch comes from one of them.

    Args:
        names: names of the data sets.
        datasets: data sets in the same order.
    """

    def __init__(self, names: Sequence[str], datasets: Sequence[Any]) -> None:
        self.names = list(names)
        self.datasets = list(datasets)
        self.noun = "examples"
        self.images = self.datasets[0].images
        self.on_host = tuple({name for each in datasets for name in each.on_host})

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitems__(self, batch: BatchRows) -> Any:
        """Called by torch's DataLoader with the batch sampler's items."""
        return self.datasets[batch.source].__getitems__(batch)

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Context manager in which batches have black images and no file is read."""
        with ExitStack() as blocks:
            for dataset in self.datasets:
                blocks.enter_context(dataset.unread())
            yield

    def collater(self, batch: Any) -> Any:
        """Collate function of the loader; ``__getitems__`` already returns batches."""
        return batch


class MixedBatches(Sampler[BatchRows]):
    """Batches of several data sets, shuffled each epoch.

    An epoch has as many batches as the data sets have together, divided by ``ratios``. A data set
    with more batches than its share continues in the next epoch; one with fewer starts over in a
    new order. Batches and their order depend only on seed and epoch, and are the same in every
    process.

    Args:
        batches: batch sampler of each data set.
        ratios: relative shares of the data sets; None reads each data set once per epoch.
        seed: seed of the run.

    Attributes:
        epoch: the current epoch.
        start: batches to skip at the start of the epoch.
    """

    def __init__(
        self, batches: Sequence[TrainBatches], ratios: Sequence[float] | None, seed: int
    ) -> None:
        self._batches = batches
        self._seed = seed
        self.epoch = 0
        self.start = 0
        sizes = np.array([len(each) for each in batches])
        shares = sizes if ratios is None else np.asarray(ratios, dtype=float)
        exact = sizes.sum() * shares / shares.sum()
        self._counts = np.maximum(1, np.round(exact)).astype(int)

    def __len__(self) -> int:
        return int(self._counts.sum())

    def __iter__(self) -> Iterator[BatchRows]:
        order = np.repeat(np.arange(len(self._counts)), self._counts)
        np.random.default_rng([self._seed, self.epoch, len(order)]).shuffle(order)
        past = np.bincount(order[: self.start], minlength=len(self._counts))
        streams = [
            self._from(source, self.epoch * int(count) + int(skipped))
            for source, (count, skipped) in enumerate(zip(self._counts, past, strict=True))
        ]
        for source in order[self.start :]:
            yield replace(next(streams[source]), source=int(source))

    @property
    def mean_size(self) -> tuple[float, float]:
        """Mean numbers of examples and of images per process and batch."""
        means = np.average([each.mean_size for each in self._batches], 0, weights=self._counts)
        return float(means[0]), float(means[1])

    @property
    def layout(self) -> str:
        """Digest that is equal for samplers with the same batches in every epoch."""
        parts = [*(each.layout for each in self._batches), *map(str, self._counts), str(self._seed)]
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    def _from(self, source: int, place: int) -> Iterator[BatchRows]:
        """An endless iterator over a data set's batches, starting at ``place``."""
        batches = self._batches[source]
        batches.epoch, batches.start = divmod(place, len(batches))
        while True:
            epoch = batches.epoch
            yield from batches
            batches.epoch, batches.start = epoch + 1, 0
