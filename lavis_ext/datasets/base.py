"""Interfaces of batches, picture data sets and their builders."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lavis_ext.checkpoints.needs import Need
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import load_yaml, merge
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.typed import default_config, typed
from lavis_ext.datasets.faults import DataFaultsConfig, UnreadableImage, patiently
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import BatchRows, Rows
from lavis_ext.datasets.samples import SampleSize
from lavis_ext.datasets.seeds import seeded
from lavis_ext.registry import BaseDatasetBuilder, registered_name

ROWS_A_DIGEST = 2**16
"""Rows hashed at a time; millions of texts at once would take gigabytes."""


class StoredTokens(NamedTuple):
    """Tokens of one stream from a feature store, in place of images."""

    values: Tensor
    """[I, T, D], as stored."""
    scales: Tensor | None
    """float32 [I, T], scales of the values; None for unscaled values."""
    grid: tuple[int, int]
    """Rows and columns of the patches."""

    def restored(self) -> Tensor:
        """The tokens in float32 [I, T, D]."""
        return self.values.float() if self.scales is None else self.values * self.scales[..., None]


class Batch(TypedDict, total=False):
    """One process's share of a batch. Data sets add their own fields.

    Tensors are moved to the device, except fields in the data set's ``on_host``.
    """

    images: dict[str, Tensor]
    """uint8 [I, 3, S, S] by stream; absent if the batch has stored ``tokens``."""
    tokens: dict[str, StoredTokens]
    """Stored tokens by stream."""
    ids: list[str]
    """Example ids."""
    global_size: int
    """Number of examples over all processes; the runner divides losses by it."""
    unreadable: list[UnreadableImage]
    """Unreadable images, if any: training skips their examples, evaluation uses a black image."""
    stand_in: bool
    """Whether the batch is a placeholder, excluded from the loss, for an unreadable one."""


class ImageFeatures(Protocol):
    """Stored encoder outputs, read in place of images."""

    def read(self, images: Sequence[str], epoch: int) -> dict[str, StoredTokens]:
        """Tokens of these images by stream."""

    def blank(self, count: int) -> dict[str, StoredTokens]:
        """Zeros in place of the tokens of ``count`` unreadable images."""


@dataclass(frozen=True)
class DataFault:
    """An error returned by a loader worker in place of a batch.

    If it were raised, torch's loader would wrap it in the worker's traceback.
    """

    message: str


class DatasetBuilder(BaseDatasetBuilder, ABC):
    """Builds a data set's splits. Register a subclass with ``registry.register_builder``.

    Class attributes:
        Config: the section ``datasets.NAME``, a dataclass of options.
        DATASET_CONFIG_DICT: default YAMLs by ``type``, the default type first; may be empty.
        OLD_KEYS: renamed keys of configs.

    Args:
        config: the section ``datasets.NAME``, typed or as a mapping merged over its type's
            defaults; None for the defaults.
    """

    Config: ClassVar[type[Any]]
    DATASET_CONFIG_DICT: ClassVar[Mapping[str, str]] = {}
    OLD_KEYS: ClassVar[Sequence[OldKey]] = ()

    def __init__(self, config: Any = None) -> None:
        if not isinstance(config, self.Config):
            given = OmegaConf.create(config or {})
            config = typed(self.Config, merge(self.default_section(given), given), self.key())
        self.config = config

    @classmethod
    def key(cls) -> str:
        """The config key of the data set's section."""
        return f"datasets.{registered_name('builder', cls)}"

    @classmethod
    def default_config_path(cls, type: str | None = None) -> str | None:
        """Default YAML of ``type``, or of the default type; None for a data set without types.

        Raises UserError for an unknown type.
        """
        types = cls.DATASET_CONFIG_DICT
        if not types:
            return None
        return default_config(types, str(type or next(iter(types))), f"{cls.key()}.type")

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """Defaults for the section ``given``.

        They are the only section of the type's YAML, whatever its name, so a data set registered
        under a second name has the same defaults.
        """
        path = cls.default_config_path(given.get("type"))
        if path is None:
            return OmegaConf.create({})
        (section,) = load_yaml(Path(path)).datasets.values()
        assert isinstance(section, DictConfig)
        return section

    def needs(self, splits: Sequence[str]) -> list[Need]:
        """Data files and folders needed by these splits, existing or missing."""
        return []

    def make_up(self, splits: Sequence[str]) -> bool:
        """Build made-up examples of the published number from now on, for a dry run without data.

        False if these splits' numbers aren't known; the data are then needed.
        """
        return False

    @abstractmethod
    def build_datasets(
        self, sizes: Mapping[str, SampleSize | None], *, seed: int, **options: Any
    ) -> dict[str, Any]:
        """Build data sets by split: those named in ``sizes``, each with its sample size.

        None means the whole split; ``SampleSize.rows`` draws a sample. ``options`` are the task's
        ``build_options``.
        """


class PictureDataset(Dataset[Any], ABC):
    """Examples of one split, each about one picture of a folder.

    Indexed with :class:`BatchRows` it returns that batch. Each picture of a batch is read once;
    failed reads are retried, then the run stops or skips the picture (``faults``). Set
    ``features`` to read stored tokens in place of pictures, and ``black`` for black images without
    reading a file.

    Args:
        images: the pictures.
        processor: maps an RGB picture to each stream's image, ``{stream: uint8 [3, S, S]}``.
    """

    noun: ClassVar[str] = "examples"
    """Word for the examples in logs."""
    on_host: ClassVar[Sequence[str]] = ()
    """Batch fields that stay on the host."""

    def __init__(
        self, images: ImageFolder, processor: Callable[[Image.Image], dict[str, Tensor]]
    ) -> None:
        self.images = images
        self.processor = processor
        self.features: ImageFeatures | None = None
        self.faults = DataFaultsConfig()
        self.black = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def image_ids(self, rows: Rows) -> list[str]:
        """Image id of each row."""

    @abstractmethod
    def ids(self, rows: Rows) -> list[str]:
        """Example id of each row."""

    @abstractmethod
    def fields(self, rows: Rows, image_index: list[int], epoch: int) -> dict[str, Any]:
        """Batch fields other than images and ids, such as texts and labels.

        ``image_index`` is each example's index into the batch's pictures. Random draws must be
        seeded only by an example's id and ``epoch``.
        """

    def image_codes(self) -> Rows:
        """Integers [len(self)], equal for examples about the same picture."""
        names = self.image_ids(np.arange(len(self)))
        return np.unique(names, return_inverse=True)[1].astype(np.int32)

    def all_images(self) -> set[str]:
        """Ids of all pictures of the split."""
        return set(self.image_ids(np.arange(len(self))))

    def compared(self, rows: Rows) -> Sequence[Sequence[str | None]]:
        """Texts [rows] that must be the same where an evaluation continues: at least the ids."""
        return [self.ids(rows), self.image_ids(rows)]

    def contents(self) -> str:
        """Digest of ``compared`` for all examples. Image files aren't read."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), ROWS_A_DIGEST):
            rows = np.arange(start, min(start + ROWS_A_DIGEST, len(self)))
            digest.update(json.dumps([list(texts) for texts in self.compared(rows)]).encode())
        return digest.hexdigest()

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Context manager in which batches have black images and no file is read."""
        before, self.black = self.black, True
        try:
            yield
        finally:
            self.black = before

    def __getitem__(self, row: int) -> Any:
        """The example in ``row`` as a batch of one, as in the first epoch."""
        batch = self.__getitems__(BatchRows(np.array([row]), epoch=0, global_size=1))
        if isinstance(batch, DataFault):
            raise UserError(batch.message)
        return batch

    def __getitems__(self, batch: BatchRows) -> Any:
        """Called by torch's DataLoader with the batch sampler's items."""
        try:
            return self._batch(batch)
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """Collate function of the loader; ``__getitems__`` already returns batches."""
        return batch

    def _batch(self, batch: BatchRows) -> Batch:
        rows = batch.rows
        about = np.array(self.image_ids(rows), dtype=object)
        images, seen, reasons = self._readable(sorted(set(about)), batch.epoch)
        faults: Batch = {}
        if reasons:
            faults["unreadable"] = self._unreadable(rows, about, reasons)
            if batch.training and images:
                kept = np.isin(about, images)
                rows, about = rows[kept], about[kept]
            elif batch.training:
                # Other processes may have a readable batch, and all of them take the step.
                faults["stand_in"] = True
                rows, about = rows[:1], about[:1]
                images, seen = [about[0]], self._blank(1)
            else:
                images, seen = [*images, *reasons], _joined(seen, self._blank(len(reasons)))
        place = {image: index for index, image in enumerate(images)}
        image_index = [place[image] for image in about]
        return {
            **seen,
            **self.fields(rows, image_index, batch.epoch),  # type: ignore[typeddict-item]
            "ids": self.ids(rows),
            "global_size": batch.global_size,
            **faults,
        }

    def _readable(self, images: list[str], epoch: int) -> tuple[list[str], Batch, dict[str, str]]:
        """Ids of readable images, their content, and errors of the others.

        Raises UserError for an unreadable image if ``faults`` says to stop.
        """
        try:
            return images, patiently(lambda: self._seen(images, epoch), self.faults), {}
        except UserError:
            if self.faults.then == "stop":
                raise
        reasons = {}
        for image in images:
            try:
                self._seen([image], epoch)
            except UserError as error:
                reasons[image] = str(error)
        kept = [image for image in images if image not in reasons]
        return kept, self._seen(kept, epoch) if kept else {}, reasons

    def _unreadable(
        self, rows: Rows, about: np.ndarray, reasons: dict[str, str]
    ) -> list[UnreadableImage]:
        left: dict[str, list[str]] = {image: [] for image in reasons}
        for name, image in zip(self.ids(rows), about, strict=True):
            if image in left:
                left[image].append(name)
        return [UnreadableImage(image, reasons[image], left[image]) for image in reasons]

    def _seen(self, images: list[str], epoch: int) -> Batch:
        """A batch's images or tokens; random processing is seeded by image and epoch."""
        if self.black:
            return self._blank(len(images))
        if self.features is not None:
            return {"tokens": self.features.read(images, epoch)}
        seen = []
        for image in images:
            with seeded(image, epoch):
                seen.append(self.processor(self.images.read(image)))
        return _stacked(seen)

    def _blank(self, count: int) -> Batch:
        """Images or tokens of ``count`` black images."""
        if self.features is not None:
            return {"tokens": self.features.blank(count)}
        with seeded("black"):
            return _stacked([self.processor(Image.new("RGB", (64, 64)))] * count)


def _stacked(seen: list[dict[str, Tensor]]) -> Batch:
    return {"images": {name: torch.stack([each[name] for each in seen]) for name in seen[0]}}


def _joined(first: Batch, second: Batch) -> Batch:
    """Concatenate the images of both."""
    if not first:
        return second
    if "images" in second:
        images = {n: torch.cat([first["images"][n], t]) for n, t in second["images"].items()}
        return {"images": images}
    tokens = {}
    for name, other in second["tokens"].items():
        own = first["tokens"][name]
        scales = None if own.scales is None else torch.cat([own.scales, other.scales])  # type: ignore[list-item]
        tokens[name] = StoredTokens(torch.cat([own.values, other.values]), scales, own.grid)
    return {"tokens": tokens}


Tree = TypeVar("Tree")


def to_device(value: Tree, device: torch.device, on_host: Sequence[str] = ()) -> Tree:
    """Move a batch's tensors to ``device``, except fields named in ``on_host``."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif isinstance(value, dict):
        moved = {
            name: each if name in on_host else to_device(each, device)
            for name, each in value.items()
        }
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        moved = type(value)(*(to_device(each, device) for each in value))
    return moved
