"""Base class of the data sets that pretrain parts of the miniature.

Each sample is drawn from a generator seeded by run seed, epoch and record, so it depends neither on
the batch size nor on the number of ranks.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from lavis_ext.datasets.mini_gqa.vocabulary import SHAPES, WORLDS
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import BatchRows, Rows
from lavis_ext.datasets.samples import SampleSize
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor


@dataclass
class PretrainingDataConfig:
    """Options of the mini-GQA for pretraining.

    Its seed differs from that of the mini-GQA for fusion training, so no test image is seen here.
    """

    type: str = option("mini", "Default config that the section is merged over.")
    root: str = option("data/mini_gqa_pretraining", "Folder of the mini-GQA.", may_change=True)
    images: int = option(12000, "Number of images, a tenth each in val and testdev.", at_least=10)
    seed: int = option(
        1000, "Seed of the scenes; data sets with different seeds share none.", at_least=0
    )
    world: str = option(SHAPES.name, "What is drawn.", choices=tuple(WORLDS))
    image_size: int = option(128, "Side in pixels of the images.", at_least=1)


@dataclass(frozen=True)
class Split:
    """A split of mini-GQA: scene graphs, masks of their objects, and questions, by image id."""

    folder: Path
    graphs: dict[str, SceneGraph]
    masks: dict[str, tuple[ObjectMask, ...]]
    questions: dict[str, list[GroundedQuestion]]


class PretrainingDataset(Dataset[Any], ABC):
    """Random samples of a split, one for each of ``records``.

    Args:
        config: options of the builder.
        split: the data.
        size: size of a seeded sample of the records; None for all of them.
        seed: seed of the run.
    """

    Config: ClassVar[type[PretrainingDataConfig]] = PretrainingDataConfig
    noun: ClassVar[str] = "examples"
    on_host: ClassVar[Sequence[str]] = ()

    def __init__(self, config: Any, split: Split, size: SampleSize | None, seed: int) -> None:
        self.config = config
        self.split = split
        self.world = WORLDS[config.world]
        self.seed = seed
        self.images = ImageFolder(split.folder / "images")
        self._process = StreamImagesProcessor(
            StreamImagesConfig(sizes={"image": config.image_size})
        )
        self.records = self._records()
        if size is not None:
            self.records = [self.records[row] for row in size.rows(self.image_codes(), seed)]

    def __len__(self) -> int:
        return len(self.records)

    def image_codes(self) -> npt.NDArray[np.int64]:
        """int64 [rows], all different, because samples share no images."""
        return np.arange(len(self))

    def ids(self, rows: Rows) -> list[str]:
        """The record numbers as text."""
        return [str(row) for row in rows]

    def contents(self) -> str:
        """Digest of all records."""
        text = repr([self.seed, *self.records])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __getitems__(self, batch: BatchRows) -> Any:
        """The batch of the sampler's rows; a DataFault for pictures that can't be read.

        torch's DataLoader calls this.
        """
        try:
            rows = [int(row) for row in batch.rows]
            names = self.ids(batch.rows)
            samples = [self.draw(row, self._generator(row, batch.epoch)) for row in rows]
            return {**self.collate(samples), "ids": names, "global_size": batch.global_size}
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """The loader's collate function; ``__getitems__`` has collated the batch already."""
        return batch

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Does nothing: pictures are always read, because samples depend on them."""
        yield

    @abstractmethod
    def draw(self, row: int, rng: random.Random) -> Any:
        """Draw a sample of the record in ``row``."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Collate samples to a batch."""

    def _records(self) -> list[Any]:
        return sorted(self.split.graphs)

    def _generator(self, row: int, epoch: int) -> random.Random:
        return random.Random(f"{self.seed}/{epoch}/{row}")

    def _image(self, image_id: str) -> Tensor:
        return self._process(self.images.read(image_id))["image"]

    def _masks(self, image_id: str) -> npt.NDArray[np.bool_]:
        """bool [objects, H, W], the masks of an image's objects."""
        return np.stack([mask.decode() for mask in self.split.masks[image_id]])
