"""The batch that the runner knows, and a data set that makes it of pictures, whatever is asked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lavis_ext.common.errors import UserError
from lavis_ext.config.renamed import OldKey
from lavis_ext.datasets.faults import DataFaultsConfig, UnreadableImage, patiently
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import BatchRows, Rows
from lavis_ext.datasets.seeds import seeded
from lavis_ext.registry import BaseDatasetBuilder


class StoredTokens(NamedTuple):
    """Tokens of one stream as a feature store keeps them, in place of images."""

    values: Tensor
    """[I, T, D], as stored."""
    scales: Tensor | None
    """float32 [I, T], what the values are multiplied by; None for values kept as they are."""
    grid: tuple[int, int]
    """Rows and columns of the patches."""

    def restored(self) -> Tensor:
        """The tokens float32 [I, T, D], as precisely as they were kept."""
        return self.values.float() if self.scales is None else self.values * self.scales[..., None]


class Batch(TypedDict, total=False):
    """One process's share of a batch. A data set adds fields of its own.

    Tensors go to the device, but for those that a data set names in ``on_host``.
    """

    images: dict[str, Tensor]
    """uint8 [I, 3, S, S] by stream; absent where ``tokens`` stand in their place."""
    tokens: dict[str, StoredTokens]
    """Stored tokens by stream."""
    ids: list[str]
    """One for each example."""
    global_size: int
    """Examples in the batch over all processes; the runner divides losses by it."""
    unreadable: list[UnreadableImage]
    """Images that couldn't be read, where there are such: in training their examples are left out,
    in evaluation they are given a black image."""
    stand_in: bool
    """Nothing of the batch could be read, and what stands here counts for nothing."""


class ImageFeatures(Protocol):
    """Stored encoder outputs, read in place of images."""

    def read(self, images: Sequence[str], epoch: int) -> dict[str, StoredTokens]:
        """The tokens of these images by stream."""

    def blank(self, count: int) -> dict[str, StoredTokens]:
        """The same of ``count`` images of which nothing is known: zeros."""


@dataclass(frozen=True)
class DataFault:
    """An error that a loader worker hands over in place of a batch.

    An exception would come out of the loader wrapped in the worker's traceback.
    """

    message: str


class DatasetBuilder(BaseDatasetBuilder, ABC):
    """Makes a data set's splits. Register a subclass with ``registry.register_builder``.

    Class attributes:
        Config: the section ``datasets.NAME``, a dataclass of options.
        OLD_KEYS: renamed keys of configs.
    """

    Config: ClassVar[type[Any]]
    OLD_KEYS: ClassVar[Sequence[OldKey]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def default_config_path(cls, type: str | None = None) -> str | None:
        """The YAML of the defaults of a ``type`` of the data set; None for no YAML."""
        return None

    @abstractmethod
    def build_datasets(
        self, sizes: Mapping[str, int | None], *, seed: int, **options: Any
    ) -> dict[str, Any]:
        """Data sets by split: those that ``sizes`` names, each with the size of its sample.

        None stands for all of a split. ``options`` are the task's ``build_options``.
        """


class PictureDataset(Dataset[Any], ABC):
    """Examples of one split, each about one picture of a folder.

    Indexed with :class:`BatchRows` it returns that batch. Pictures that several examples of a batch
    share are read once; a picture that can't be read is retried, then stops the run or is left out
    (``faults``). Set ``features`` to have stored tokens read in place of pictures.

    Args:
        images: the pictures.
        processor: RGB picture to the images of each stream, ``{stream: uint8 [3, S, S]}``.
    """

    noun: ClassVar[str] = "examples"
    """What the log calls them."""
    on_host: ClassVar[Sequence[str]] = ()
    """Fields of a batch that stay on the host."""

    def __init__(
        self, images: ImageFolder, processor: Callable[[Image.Image], dict[str, Tensor]]
    ) -> None:
        self.images = images
        self.processor = processor
        self.features: ImageFeatures | None = None
        self.faults = DataFaultsConfig()

    @abstractmethod
    def __len__(self) -> int:
        """Examples of the split."""

    @abstractmethod
    def image_ids(self, rows: Rows) -> list[str]:
        """The picture of each of these examples."""

    @abstractmethod
    def ids(self, rows: Rows) -> list[str]:
        """The examples' own ids."""

    @abstractmethod
    def fields(self, rows: Rows, image_index: list[int], epoch: int) -> dict[str, Any]:
        """What the batch holds beside images and ids, such as texts and labels.

        ``image_index`` is the place of each example's picture in the batch. Draw nothing at random
        that doesn't follow from an example's id and ``epoch``.
        """

    def image_codes(self) -> Rows:
        """Integers [len(self)], equal for examples about one picture."""
        names = self.image_ids(np.arange(len(self)))
        return np.unique(names, return_inverse=True)[1].astype(np.int32)

    def all_images(self) -> set[str]:
        """Ids of all pictures of the split."""
        return set(self.image_ids(np.arange(len(self))))

    def __getitem__(self, row: int) -> Any:
        """The example in ``row`` as a batch of one, in its first epoch."""
        batch = self.__getitems__(BatchRows(np.array([row]), epoch=0, global_size=1))
        if isinstance(batch, DataFault):
            raise UserError(batch.message)
        return batch

    def __getitems__(self, batch: BatchRows) -> Any:
        """Called by torch's DataLoader with what the batch sampler yields."""
        try:
            return self._batch(batch)
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """The loader's collate function: batches come out of ``__getitems__`` collated."""
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
                # The other processes' batches may be sound, and all have to take the step together.
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
        """The images that can be read, their content, and why others can't be.

        Raises UserError for these, where the run is to stop.
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
        """What a batch holds of its images; a processor's randomness follows image and epoch."""
        if self.features is not None:
            return {"tokens": self.features.read(images, epoch)}
        seen = []
        for image in images:
            with seeded(image, epoch):
                seen.append(self.processor(self.images.read(image)))
        return _stacked(seen)

    def _blank(self, count: int) -> Batch:
        """The same of ``count`` black images."""
        if self.features is not None:
            return {"tokens": self.features.blank(count)}
        with seeded("black"):
            return _stacked([self.processor(Image.new("RGB", (64, 64)))] * count)


def _stacked(seen: list[dict[str, Tensor]]) -> Batch:
    return {"images": {name: torch.stack([each[name] for each in seen]) for name in seen[0]}}


def _joined(first: Batch, second: Batch) -> Batch:
    """The images of both, one after another."""
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
    """A batch with its tensors on ``device``; fields named in ``on_host`` stay where they are."""
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
