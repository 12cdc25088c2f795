"""Several data sets trained on together, by ratios."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from lavis_ext.datasets.samplers import BatchRows, TrainBatches


def split_of(name: str) -> str:
    """The split of a data set's name: ``val`` of ``val`` and of ``NAME.val``."""
    return name.rpartition(".")[2]


class MixedDataset(Dataset[Any]):
    """Data sets one beside the other; each batch is of one of them.

    Args:
        names: the data sets' names.
        datasets: the data sets.
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
        """Called by torch's DataLoader with what the batch sampler yields."""
        return self.datasets[batch.source].__getitems__(batch)

    def collater(self, batch: Any) -> Any:
        """The loader's collate function: batches come out of ``__getitems__`` collated."""
        return batch


class MixedBatches(Sampler[BatchRows]):
    """Batches of several data sets in an order drawn anew each epoch.

    An epoch has as many batches as the data sets have together; of them each data set gives its
    share by ``ratios``. One that has more than its share goes on in the next epoch where it
    stopped; one that has less is started anew, in another order. Batch and order are a function of
    seed and epoch alone, the same in every process.

    Args:
        batches: the batches of each data set.
        ratios: the data sets' shares, in any unit; None: each once an epoch.
        seed: the run's seed.

    Attributes:
        epoch: the epoch whose order is used.
        start: batches at the start of the epoch that are left out.
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
    def layout(self) -> str:
        """A digest, equal for samplers whose batches are the same in every epoch."""
        told = [*(each.layout for each in self._batches), *map(str, self._counts), str(self._seed)]
        return hashlib.blake2b(" ".join(told).encode(), digest_size=16).hexdigest()

    def _from(self, source: int, place: int) -> Iterator[BatchRows]:
        """The batches of a data set without end, from ``place`` on."""
        batches = self._batches[source]
        batches.epoch, batches.start = divmod(place, len(batches))
        while True:
            epoch = batches.epoch
            yield from batches
            batches.epoch, batches.start = epoch + 1, 0
