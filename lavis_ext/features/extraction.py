"""Extract features: read every image once, and encode it for each stream whose store lacks it.

Missing images are divided into shards by id; rank r of n processes takes every n-th shard. An
interrupted extraction has whole shards only, so the rest is divided in the same way.
"""

import logging
import time
import uuid
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
from lavis_ext.common.files import free_space
from lavis_ext.common.locks import Lock
from lavis_ext.common.progress import ProgressLine
from lavis_ext.datasets.base import DataFault
from lavis_ext.datasets.faults import DataFaultsConfig, patiently
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.seeds import seeded
from lavis_ext.distributed.peers import STORING
from lavis_ext.encoders.base import Encoder
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.precision import compressed, pooled
from lavis_ext.features.store import FeatureStore, ImageState, Shard, altered, unwritable

log = logging.getLogger(__name__)

GIB = 2**30
"""Bytes."""
Images = tuple[str, ...]
"""Image ids of a shard."""


@dataclass(frozen=True)
class Extraction:
    """Images to encode, and a store for each stream.

    Attributes:
        stores: encoders, each with the store of its stream.
        images: folder of the images.
        processor: maps an RGB picture to each stream's image.
        wanted: image ids; all of the files exist.
        views: stored views per image.
        config: the section ``run.features``.
        faults: the section ``run.data_faults``; no image is skipped here.
    """

    stores: Sequence[tuple[Encoder, FeatureStore]]
    images: ImageFolder
    processor: Callable[..., dict[str, Tensor]]
    wanted: frozenset[str]
    views: int
    config: FeaturesConfig
    faults: DataFaultsConfig

    def run(self, device: torch.device, workers: int, *, rebuild: bool = False) -> None:
        """Extract missing features. Called by every process; the encoders are on ``device``.

        ``rebuild`` replaces damaged shards. Raises UserError for a full disk, for unreadable images
        and, without ``rebuild``, for damaged shards.
        """
        with ExitStack() as locks:
            lock = self._locked(locks)
            self._check_common_folder()
            distributed.from_main_process(self._begin)
            self._check_shards(rebuild)
            jobs = distributed.from_main_process(self._jobs)
            if jobs:
                self._work(jobs, device, workers, lock)
            distributed.from_main_process(self._finish)

    def damaged(self) -> list[Path]:
        """Shards whose bytes have changed since they were written; processes share the reading."""
        files = [path for _, store in self.stores for path in store.files()]
        mine = files[distributed.rank() :: distributed.world_size()]
        return sorted(distributed.gather([path for path in mine if altered(path)]))

    def _locked(self, locks: ExitStack) -> Lock | None:
        """Lock all stores; returns the last lock in the main process, for its progress notes."""
        held: list[Lock] = []

        def take_next() -> None:
            held.append(locks.enter_context(stores[len(held)].lock()))

        def taken() -> bool:
            has = held[-1].taken()
            if not has:
                line.update(f"Waiting for another process: {held[-1].read_note()}")
            return has

        # In a fixed order, so that runs can't deadlock.
        stores = sorted((store for _, store in self.stores), key=lambda each: each.folder)
        with ProgressLine.logged(log) as line:
            for _ in stores:
                distributed.from_main_process(take_next)
                # Each attempt is broadcast: a longer wait would exceed the process group's timeout.
                while not distributed.from_main_process(taken):
                    pass
        return held[-1] if held else None

    def _check_common_folder(self) -> None:
        """Raise UserError if a machine of the job doesn't see the main process's folder."""
        if distributed.world_size() == distributed.local_world_size():
            return
        root = self.stores[0][1].root
        sign = root / distributed.broadcast(f".{uuid.uuid4().hex}")

        def write() -> None:
            try:
                sign.touch()
            except OSError as error:
                raise unwritable(root, error) from None

        distributed.from_main_process(write)
        (lacking,) = distributed.greatest([int(not sign.exists())])
        if distributed.is_main_process():
            sign.unlink()
        if lacking:
            raise UserError(
                f"run.features.root: {root} isn't the same folder on all machines, so each would "
                "have a part of the features. Set a common one, or extract on each machine by "
                "itself, without --nnodes."
            )

    def _begin(self) -> None:
        for _, store in self.stores:
            store.begin()

    def _check_shards(self, rebuild: bool) -> None:
        damaged = self.damaged()
        if damaged and not rebuild:
            raise UserError(damage(damaged))

        def remove() -> None:
            for path in damaged:
                log.info("%s is damaged and will be extracted again.", path)
                path.unlink(missing_ok=True)

        distributed.from_main_process(remove)

    def _jobs(self) -> list[tuple[Images, list[int]]]:
        """Image ids of each missing shard, with the indices of the stores that lack them."""
        jobs: dict[Images, list[int]] = {}
        needed = 0
        for place, (_, store) in enumerate(self.stores):
            lacking = sorted(self._lacking(store))
            needed += len(lacking) * store.bytes_an_image
            size = self.config.images_per_shard
            for start in range(0, len(lacking), size):
                jobs.setdefault(tuple(lacking[start : start + size]), []).append(place)
        self._check_free_space(needed)
        return list(jobs.items())

    def _lacking(self, store: FeatureStore) -> set[str]:
        """Ids without a valid shard: wanted ones, and others of a changed or lost shard."""
        shards, _ = store.shards()
        current, had = _current(shards, self.wanted, self.images)
        index = store.index()
        if index is not None:
            had |= {*index["image"].to_pylist()}
        held = {state.image for shard in current for state in shard.images}
        return {*self.wanted, *(image for image in had if image in self.images)} - held

    def _check_free_space(self, needed: int) -> None:
        root = self.stores[0][1].root
        free = free_space(root)
        if needed > free:
            raise UserError(
                f"{root}: the features need {needed / GIB:.3g} GiB and "
                f"{free / GIB:.3g} GiB are free. Free some disk space, set another folder with "
                "run.features.root, or store smaller features (run.features.dtype, .pooling)."
            )
        if needed:
            log.info("storing %.3g GiB of features; %.3g GiB are free", needed / GIB, free / GIB)

    def _work(
        self,
        jobs: list[tuple[Images, list[int]]],
        device: torch.device,
        workers: int,
        lock: Lock | None,
    ) -> None:
        """Process this rank's share of the jobs; all ranks exchange errors after each job."""
        rank, world = distributed.rank(), distributed.world_size()
        mine = jobs[rank::world]
        batches = self._batches([images for images, _ in mine], workers)
        total, done = sum(len(images) for images, _ in jobs), 0
        started, text = time.monotonic(), ""
        with ProgressLine.logged(log) as line:
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
                    lock.write_note(text)
                line.update(text)
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
        """Encode one shard's images for the stores that lack them, and write the shards."""
        states: list[ImageState] = []
        parts: dict[int, list[dict[str, Tensor]]] = {place: [] for place in places}
        while len(states) < len(images):
            distributed.at(STORING, 0)
            batch = next(batches)
            states += batch[0]
            for place in places:
                encoder, store = self.stores[place]
                image = encoder.picture or store.stream
                pictures = batch[1][image].to(device, non_blocking=True)
                parts[place].append(self._encoded(encoder, store.stream, pictures, images))
        for place, encoded in parts.items():
            tensors = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
            self.stores[place][1].write_shard(states, tensors)

    @torch.no_grad()
    def _encoded(
        self, encoder: Encoder, stream: str, pictures: Tensor, images: Images
    ) -> dict[str, Tensor]:
        # cuDNN's benchmarking may pick other algorithms, and thus other bits, in each run.
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            tokens = encoder.encode(pictures).float()
        tokens = pooled(tokens, encoder.grid, self.config.pooling, encoder.prefix)
        try:
            found = compressed(tokens, self.config.dtype)
        except ValueError as error:
            raise UserError(
                f"The {stream} stream of images {images[0]} to {images[-1]} can't be stored "
                f"({error}). Set another run.features.dtype, or check the encoder's weights."
            ) from None
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _finish(self) -> None:
        for _, store in self.stores:
            shards, _ = store.shards()
            store.write_index(_current(shards, self.wanted, self.images)[0])


class _Pictures(Dataset[Any]):
    """Batches of processed images, read by loader workers."""

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
        """Image states [B], and pictures [B * views, 3, S, S] by stream."""
        try:
            return patiently(lambda: self._read(self._cuts[place]), self._faults)
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """Collate function of the loader; ``__getitems__`` already returns batches."""
        return batch

    def _read(self, images: Images) -> tuple[list[ImageState], dict[str, Tensor]]:
        states, pictures = [], []
        for image in images:
            states.append(ImageState.of(image, self.images))
            picture = self.images.read(image)
            for view in range(self._views):
                with seeded(image, view):
                    pictures.append(self._processor(picture))
        return states, {
            name: torch.stack([each[name] for each in pictures]) for name in pictures[0]
        }


def damage(paths: Sequence[Path]) -> str:
    """Error message that names damaged shards."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return (
        f"{', '.join(map(str, paths[:3]))}{more}: damaged; the checksum doesn't match. Rebuild "
        "with python -m lavis_ext.features.extract --rebuild and the run's config."
    )


def _current(
    shards: list[Shard], wanted: frozenset[str], images: ImageFolder
) -> tuple[list[Shard], set[str]]:
    """Valid shards, whose wanted images are unchanged, and the image ids of all others."""
    current, others = [], set()
    for shard in shards:
        if shard.current(wanted, images):
            current.append(shard)
        else:
            others |= {state.image for state in shard.images}
    return current, others
