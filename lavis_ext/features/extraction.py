"""Fills stores: every image is read once, encoded by each stream that lacks it, and written.

The images that a store lacks are cut, in the order of their ids, into shards; a process takes
every so-manieth of them. What was finished before an interruption drops out of the list as whole
shards, so what remains is cut as it would have been.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import room_in
from lavis_ext.common.locks import Lock, Regularly
from lavis_ext.datasets.base import DataFault
from lavis_ext.datasets.faults import DataFaultsConfig, patiently
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.seeds import seeded
from lavis_ext.distributed.peers import STORING
from lavis_ext.encoders.base import Encoder
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.precision import compressed, pooled
from lavis_ext.features.store import FeatureStore, ImageState, Shard, altered

log = logging.getLogger(__name__)

GIB = 2**30
"""Bytes."""
Images = tuple[str, ...]
"""Ids of the images of a shard."""


@dataclass(frozen=True)
class Extraction:
    """Images and the stores that are to hold them, one for each stream.

    Attributes:
        stores: the encoders, each with the store of its stream.
        images: where the images are.
        processor: RGB picture to the image of each stream.
        wanted: ids of the images, all of which there are.
        views: of each image.
        config: the section ``run.features``.
        faults: the section ``run.data_faults``; whatever it says, no image is left out.
    """

    stores: Sequence[tuple[Encoder, FeatureStore]]
    images: ImageFolder
    processor: Callable[..., dict[str, Tensor]]
    wanted: frozenset[str]
    views: int
    config: FeaturesConfig
    faults: DataFaultsConfig

    def run(self, device: torch.device, workers: int, *, rebuild: bool = False) -> None:
        """Make what is missing. Entered by every process; the encoders are on ``device``.

        With ``rebuild``, damaged shards are made anew. Raises UserError naming them without it,
        for a disk that has no room, or runs full, and for images that can't be read.
        """
        with ExitStack() as locks:
            lock = self._locked(locks)
            distributed.from_main_process(self._begin)
            self._refuse_damaged(rebuild)
            jobs = distributed.from_main_process(self._jobs)
            if jobs:
                self._work(jobs, device, workers, lock)
            distributed.from_main_process(self._finish)

    def damaged(self) -> list[Path]:
        """Shards whose bytes aren't what was written; all are read, a share by each process."""
        files = [path for _, store in self.stores for path in store.files()]
        mine = files[distributed.rank() :: distributed.world_size()]
        return sorted(distributed.gather([path for path in mine if altered(path)]))

    def _locked(self, locks: ExitStack) -> Lock | None:
        """The locks of all stores, for the main process; the last of them is told the progress."""
        held: list[Lock] = []
        line = Regularly()

        def take_next() -> None:
            held.append(locks.enter_context(stores[len(held)].lock()))

        def taken() -> bool:
            has = held[-1].taken()
            if not has and line.due():
                log.info("Waiting for another process: %s", held[-1].told())
            return has

        # In one order, so that no two runs wait for each other.
        stores = sorted((store for _, store in self.stores), key=lambda each: each.folder)
        for _ in stores:
            distributed.from_main_process(take_next)
            # Told to all every time, because nobody waits for longer than a group's timeout.
            while not distributed.from_main_process(taken):
                pass
        return held[-1] if held else None

    def _begin(self) -> None:
        for _, store in self.stores:
            store.begin()

    def _refuse_damaged(self, rebuild: bool) -> None:
        damaged = self.damaged()
        if damaged and not rebuild:
            raise UserError(damage(damaged))

        def remove() -> None:
            for path in damaged:
                log.info("%s is damaged and will be made anew.", path)
                path.unlink(missing_ok=True)

        distributed.from_main_process(remove)

    def _jobs(self) -> list[tuple[Images, list[int]]]:
        """Images of shards to be made, each with the places of the stores that lack them."""
        jobs: dict[Images, list[int]] = {}
        needed = 0
        for place, (_, store) in enumerate(self.stores):
            lacking = sorted(self._lacking(store))
            needed += len(lacking) * store.bytes_an_image
            size = self.config.images_per_shard
            for start in range(0, len(lacking), size):
                jobs.setdefault(tuple(lacking[start : start + size]), []).append(place)
        self._refuse_too_little_room(needed)
        return list(jobs.items())

    def _lacking(self, store: FeatureStore) -> set[str]:
        """Ids that no current shard has: wanted ones, and what went with a changed or lost one."""
        shards, _ = store.shards()
        current, had = _current(shards, self.wanted, self.images)
        index = store.index()
        if index is not None:
            had |= {*index["image"].to_pylist()}
        held = {state.image for shard in current for state in shard.images}
        return {*self.wanted, *(image for image in had if image in self.images)} - held

    def _refuse_too_little_room(self, needed: int) -> None:
        root = self.stores[0][1].root
        free = room_in(root)
        if needed > free:
            raise UserError(
                f"{root}: the features need {needed / GIB:.3g} GiB and there are "
                f"{free / GIB:.3g} GiB free. Make room, name another folder with "
                "run.features.root, or store less of them (run.features.dtype, .pooling)."
            )
        if needed:
            log.info("Storing %.3g GiB of features, of %.3g free.", needed / GIB, free / GIB)

    def _work(
        self,
        jobs: list[tuple[Images, list[int]]],
        device: torch.device,
        workers: int,
        lock: Lock | None,
    ) -> None:
        """This process's share of the jobs. After each, all tell each other how it went."""
        rank, world = distributed.rank(), distributed.world_size()
        mine = jobs[rank::world]
        batches = self._batches([images for images, _ in mine], workers)
        total, done = sum(len(images) for images, _ in jobs), 0
        started, line = time.monotonic(), Regularly()
        for first in range(0, len(jobs), world):
            distributed.at(STORING, 0)
            fault = None
            if first + rank < len(jobs):
                images, places = jobs[first + rank]
                try:
                    self._make(images, places, batches, device)
                except UserError as error:
                    fault = str(error)
            faults = [each for each in distributed.gather([fault]) if each]
            if faults:
                raise UserError(faults[0])
            done += sum(len(images) for images, _ in jobs[first : first + world])
            rate = done / (time.monotonic() - started)
            text = (
                f"features of {done:,} of {total:,} images stored, {rate:.3g} images/s, "
                f"{(total - done) / rate / 60:.1f} min left"
            )
            if lock:
                lock.tell(text)
            if line.due() or done == total:
                log.info(text)

    def _batches(self, shards: list[Images], workers: int) -> Iterator[Any]:
        size = max(1, self.config.batch_size // self.views)
        cuts = [
            images[start : start + size]
            for images in shards
            for start in range(0, len(images), size)
        ]
        pictures = _Pictures(self.images, self.processor, self.views, cuts, self.faults)
        return iter(Loader(pictures, range(len(cuts)), workers, self.faults))

    def _make(
        self,
        images: Images,
        places: list[int],
        batches: Iterator[Any],
        device: torch.device,
    ) -> None:
        """Encode the images of one shard for some of the stores, and write them."""
        states: list[ImageState] = []
        parts: dict[int, list[dict[str, Tensor]]] = {place: [] for place in places}
        while len(states) < len(images):
            distributed.at(STORING, 0)
            batch = next(batches)
            states += batch[0]
            for place in places:
                encoder, store = self.stores[place]
                pictures = batch[1][store.stream].to(device, non_blocking=True)
                parts[place].append(self._encoded(encoder, store.stream, pictures, images))
        for place, encoded in parts.items():
            tensors = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
            self.stores[place][1].write_shard(states, tensors)

    @torch.no_grad()
    def _encoded(
        self, encoder: Encoder, stream: str, pictures: Tensor, images: Images
    ) -> dict[str, Tensor]:
        # Which of cuDNN's algorithms is the quickest differs from run to run, and so would bits.
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            tokens = encoder.encode(pictures).float()
        tokens = pooled(tokens, encoder.grid, self.config.pooling, encoder.prefix)
        try:
            found = compressed(tokens, self.config.dtype)
        except ValueError as error:
            raise UserError(
                f"The {stream} stream of images {images[0]} to {images[-1]} can't be stored "
                f"({error}). Choose another run.features.dtype, or check the encoder's weights."
            ) from None
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _finish(self) -> None:
        for _, store in self.stores:
            shards, _ = store.shards()
            store.write_index(_current(shards, self.wanted, self.images)[0])


class _Pictures(Dataset[Any]):
    """Batches of images as the encoders take them, read by loader workers."""

    def __init__(
        self,
        images: ImageFolder,
        processor: Callable[..., dict[str, Tensor]],
        views: int,
        cuts: list[Images],
        faults: DataFaultsConfig,
    ) -> None:
        self.images = images
        self._processor = processor
        self._views = views
        self._cuts = cuts
        self._faults = faults

    def __getitems__(self, place: int) -> tuple[list[ImageState], dict[str, Tensor]] | DataFault:
        """States of the images [B], and pictures [B * views, 3, S, S] by stream."""
        try:
            return patiently(lambda: self._read(self._cuts[place]), self._faults)
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """The loader's collate function: batches come out of ``__getitems__`` collated."""
        return batch

    def _read(self, images: Images) -> tuple[list[ImageState], dict[str, Tensor]]:
        states, pictures = [], []
        for image in images:
            states.append(ImageState.of(image, self.images.path(image)))
            picture = self.images.read(image)
            for view in range(self._views):
                with seeded(image, view):
                    pictures.append(self._processor(picture))
        return states, {
            name: torch.stack([each[name] for each in pictures]) for name in pictures[0]
        }


def damage(paths: Sequence[Path]) -> str:
    """The message that names damaged shards."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return (
        f"{', '.join(map(str, paths[:3]))}{more}: damaged, not what was written. Make only that "
        "anew with python -m lavis_ext.features.extract --rebuild and the run's config."
    )


def _current(
    shards: list[Shard], wanted: frozenset[str], images: ImageFolder
) -> tuple[list[Shard], set[str]]:
    """Shards without a wanted image that has changed, and the ids of the others' images."""
    current, others = [], set()
    for shard in shards:
        if shard.current(wanted, images):
            current.append(shard)
        else:
            others |= {state.image for state in shard.images}
    return current, others
