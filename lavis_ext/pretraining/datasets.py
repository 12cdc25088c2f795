"""What the data sets share that the parts of the miniature are trained on.

Each data set draws from a generator seeded by run seed, epoch and record, so neither the batch size
nor the number of processes changes a sample.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.datasets.base import DataFault
from lavis_ext.datasets.gqa.grounded_questions import GroundedQuestion
from lavis_ext.datasets.gqa.object_masks import ObjectMask
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import BatchRows, Rows
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor


@dataclass
class PretrainingDataConfig:
    """A mini-GQA of its own, so that no part of the miniature has seen what it is tested on."""

    type: str = option("mini", "Which default config the section starts from.")
    root: str = option("data/mini_gqa_pretraining", "Where the mini-GQA is made.", may_change=True)
    images: int = option(12000, "Its images; a tenth each is val and testdev.", at_least=10)
    seed: int = option(1000, "Seed of its scenes; data sets of other seeds share none.", at_least=0)
    image_size: int = option(128, "Side in pixels of the images.", at_least=1)


@dataclass(frozen=True)
class Split:
    """One split of mini-GQA: scene graphs, their objects' masks, and questions by image id."""

    folder: Path
    graphs: dict[str, SceneGraph]
    masks: dict[str, tuple[ObjectMask, ...]]
    questions: dict[str, list[GroundedQuestion]]


class PretrainingDataset(Dataset[Any], ABC):
    """Samples of one split, each drawn from a record of ``records``.

    Args:
        config: the builder's options.
        split: the data.
        size: how many records, a seeded sample of them; None for all.
        seed: the run's seed.
    """

    Config: ClassVar[type[PretrainingDataConfig]] = PretrainingDataConfig
    noun: ClassVar[str] = "examples"
    on_host: ClassVar[Sequence[str]] = ()

    def __init__(self, config: Any, split: Split, size: int | None, seed: int) -> None:
        self.config = config
        self.split = split
        self.seed = seed
        self.images = ImageFolder(split.folder / "images")
        self._process = StreamImagesProcessor(
            StreamImagesConfig(sizes={"image": config.image_size})
        )
        self.records = self._records()
        if size is not None and size < len(self.records):
            chosen = np.random.default_rng(seed).choice(len(self.records), size, replace=False)
            self.records = [self.records[row] for row in sorted(chosen)]

    def __len__(self) -> int:
        return len(self.records)

    def image_codes(self) -> npt.NDArray[np.int64]:
        """Integers [rows], all different: nothing is shared between samples."""
        return np.arange(len(self))

    def ids(self, rows: Rows) -> list[str]:
        """Each record's number, as a text."""
        return [str(row) for row in rows]

    def __getitems__(self, batch: BatchRows) -> Any:
        """Called by torch's DataLoader with what the batch sampler yields."""
        try:
            rows = [int(row) for row in batch.rows]
            names = self.ids(batch.rows)
            samples = [self.draw(row, self._generator(row, batch.epoch)) for row in rows]
            return {**self.collate(samples), "ids": names, "global_size": batch.global_size}
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """The loader's collate function: batches come out of ``__getitems__`` collated."""
        return batch

    @abstractmethod
    def draw(self, row: int, rng: random.Random) -> Any:
        """One sample of the record in ``row``."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """A batch of samples."""

    def _records(self) -> list[Any]:
        return sorted(self.split.graphs)

    def _generator(self, row: int, epoch: int) -> random.Random:
        return random.Random(f"{self.seed}/{epoch}/{row}")

    def _image(self, image_id: str) -> Tensor:
        return self._process(self.images.read(image_id))["image"]

    def _masks(self, image_id: str) -> npt.NDArray[np.bool_]:
        """Masks [objects, H, W] of an image's objects."""
        return np.stack([mask.decode() for mask in self.split.masks[image_id]])
