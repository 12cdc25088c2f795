"""Stored features of a run: its splits' images and their stores."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from lavis_ext import distributed
from lavis_ext.common.addresses import is_address
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import free_space, read_object
from lavis_ext.datasets.base import PictureDataset
from lavis_ext.datasets.mixed import split_of
from lavis_ext.encoders.base import Encoder
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.extraction import GIB, Extraction, damage
from lavis_ext.features.reader import IncompleteStore, RandomFeatures, StoredFeatures, StoredStream
from lavis_ext.features.remote import RemoteStores
from lavis_ext.features.store import FACTS, FeatureStore
from lavis_ext.models.base import TrainableModel
from lavis_ext.models.lora import is_lora


@dataclass(frozen=True)
class Alike:
    """Splits with the same image processing, which share their stores."""

    splits: tuple[str, ...]
    extraction: Extraction

    def opened(self) -> list[StoredStream]:
        """Open the stores. Raises UserError as :class:`StoredStream` does."""
        side = self.extraction.config.pooling
        return [
            StoredStream(store, (encoder.grid[0] // side, encoder.grid[1] // side), encoder.prefix)
            for encoder, store in self.extraction.stores
        ]


class RunFeatures:
    """Lets a run's data sets read stored features in place of images.

    Args:
        config: the section ``run.features``.
        datasets: the run's data sets by split.
        model: the model, with all but its trained parameters frozen.

    Raises UserError for trained encoders, whose output changes, and for options that the encoders
    don't support.
    """

    def __init__(
        self,
        config: FeaturesConfig,
        datasets: Mapping[str, PictureDataset],
        model: TrainableModel,
    ) -> None:
        self.config = config
        self._datasets = datasets
        self._remote: RemoteStores | None = None
        if config.root and is_address(config.root):
            self._remote = RemoteStores(config.root, config.cache)
        self._roots = self._store_roots()
        self._model = model
        streams = model.token_streams
        if not streams:
            raise UserError(
                f"run.features: {type(model).__name__} has no streams whose output can be stored; "
                "remove the section."
            )
        for name, encoder in streams.items():
            self._check(name, encoder)
        weights = {name: encoder.fingerprint() for name, encoder in streams.items()}
        groups: dict[tuple[Path | str, str], list[str]] = {}
        for split, dataset in datasets.items():
            how = json.dumps(self._prepared(split, dataset))
            groups.setdefault((dataset.images.folder, how), []).append(split)
        self.groups = [
            self._group(json.loads(how), splits, streams, weights)
            for (_, how), splits in groups.items()
        ]

    def use(self, device: torch.device, workers: int) -> None:
        """Switch the data sets to stored features, extracting missing ones with ``make``.

        Called by every process. Raises UserError for incomplete stores, stores of another model,
        and as :meth:`make` does.
        """
        self._check_root()
        incomplete = self._incomplete()
        if incomplete and (self.config.make or self._remote):
            self.make(device, workers)
            incomplete = self._incomplete()
        if incomplete and self._remote:
            raise UserError(
                f"{incomplete} It is a copy of {self.config.root}, which is only read: extract to "
                "a folder, and copy it there."
            )
        if incomplete:
            raise UserError(
                f"{incomplete} Create it with run.features.make=true, or beforehand with "
                "python -m lavis_ext.features.extract and the run's config."
            )
        for group in self.groups:
            streams = group.opened()
            for split in group.splits:
                self._datasets[split].features = StoredFeatures(
                    streams, self.config, augment=split_of(split) == "train"
                )

    def stand_in(self) -> None:
        """Switch the data sets to random tokens of the stores' shapes, for timing."""
        for group in self.groups:
            stand_in = RandomFeatures(group.extraction.stores, self.config)
            for split in group.splits:
                self._datasets[split].features = stand_in

    def make(self, device: torch.device, workers: int, *, rebuild: bool = False) -> None:
        """Extract missing features (:meth:`Extraction.run`), or copy them from an address."""
        self._check_root()
        if self._remote:
            stores = [store for group in self.groups for _, store in group.extraction.stores]
            self._remote.copy(stores, rebuild=rebuild)
            return
        self._model.to(device).eval()
        for group in self.groups:
            group.extraction.run(device, workers, rebuild=rebuild)

    def verify(self) -> None:
        """Read all shards. Raises UserError for damaged ones and for missing features.

        Called by every process.
        """
        damaged = [path for group in self.groups for path in group.extraction.damaged()]
        if damaged:
            raise UserError(damage(damaged))
        if incomplete := self._incomplete():
            raise UserError(incomplete)

    def size(self) -> str:
        """Describe the complete stores' size on disk and the free space."""
        needed: Counter[Path] = Counter()
        for group in self.groups:
            for _, store in group.extraction.stores:
                needed[store.root] += len(group.extraction.wanted) * store.bytes_an_image
        return "; ".join(
            f"{size / GIB:.3g} GiB in {root}, with {free_space(root) / GIB:.3g} GiB free"
            for root, size in needed.items()
        )

    def _store_roots(self) -> dict[Path | str, Path]:
        """The stores' folder for each image folder.

        Image folders with a common one get subfolders, because their image ids may be equal.
        """
        owners: dict[Path | str, str] = {}
        for name, dataset in self._datasets.items():
            owners.setdefault(dataset.images.folder, name.rpartition(".")[0] or name)
        given = self._remote.root if self._remote else self.config.root
        if not given and (addresses := [each for each in owners if isinstance(each, str)]):
            raise UserError(
                f"run.features.root: set a local folder, as the images are at {addresses[0]}."
            )
        roots = {each: Path(given or Path(each).parent / "features") for each in owners}
        uses = Counter(roots.values())
        return {
            folder: root / owners[folder] if uses[root] > 1 else root
            for folder, root in roots.items()
        }

    def _check(self, name: str, encoder: Encoder) -> None:
        side = self.config.pooling
        if any(split_of(split) == "train" for split in self._datasets) and encoder.trained():
            if any(is_lora(parameter) for parameter, _ in encoder.named_parameters()):
                raise UserError(
                    f"model.lora adapts the encoder of the {name} stream, so stored features "
                    "would go stale. Adapt other parts, or remove run.features."
                )
            raise UserError(
                f"run.trainable includes the encoder of the {name} stream, so its stored "
                "features would go stale. Freeze it, or remove run.features."
            )
        if encoder.grid[0] % side or encoder.grid[1] % side:
            raise UserError(
                f"run.features.pooling is {side}; it must divide the {name} stream's grid, "
                f"{encoder.grid[0]}x{encoder.grid[1]}."
            )

    def _prepared(self, split: str, dataset: PictureDataset) -> dict[str, Any]:
        """Facts about a split's image processing; raises UserError if it can't be stored."""
        processor: Any = dataset.processor
        views = self.config.views if split_of(split) == "train" else 1
        if views > 1 and not getattr(processor, "random", True):
            raise UserError(
                f"run.features.views is {views}, but vis_processor.train isn't random; enable its "
                "crop or jitter, or store one view."
            )
        if views == 1 and getattr(processor, "random", False):
            raise UserError(
                f"The image processor of split '{split}' is random, but only one view would be "
                "stored; increase run.features.views, or disable crop and jitter."
            )
        return {"processor": processor.facts(), "views": views}

    def _group(
        self,
        how: dict[str, Any],
        splits: list[str],
        streams: Mapping[str, Encoder],
        weights: Mapping[str, str],
    ) -> Alike:
        datasets = [self._datasets[split] for split in splits]
        root = self._roots[datasets[0].images.folder]
        stores = [
            (encoder, self._store(root, name, encoder, weights[name], how))
            for name, encoder in streams.items()
        ]
        wanted = frozenset(image for dataset in datasets for image in dataset.all_images())
        extraction = Extraction(
            stores,
            datasets[0].images,
            datasets[0].processor,
            wanted,
            how["views"],
            self.config,
            datasets[0].faults,
        )
        return Alike(tuple(splits), extraction)

    def _store(
        self, root: Path, stream: str, encoder: Encoder, weights: str, how: dict[str, Any]
    ) -> FeatureStore:
        facts = {
            "stream": stream,
            "encoder": {"weights": weights, **encoder.fingerprint_options()},
            "dtype": self.config.dtype,
            "pooling": self.config.pooling,
            **how,
        }
        patches = encoder.grid[0] * encoder.grid[1] // self.config.pooling**2
        return FeatureStore(root, facts, patches + encoder.prefix, encoder.width)

    def _incomplete(self) -> str | None:
        """Message about the first incomplete store, on any machine; None if all are complete."""
        incomplete = fault = None
        if distributed.local_rank() == 0:
            try:
                incomplete = self._incomplete_here()
            except UserError as error:
                fault = str(error)
        for of_rank, each in distributed.gather([(incomplete, fault)]):
            if each is not None:
                raise UserError(each)
            incomplete = incomplete or of_rank
        return incomplete

    def _incomplete_here(self) -> str | None:
        for group in self.groups:
            extraction = group.extraction
            try:
                for stream in group.opened():
                    stream.check_complete(extraction.wanted, extraction.images)
            except IncompleteStore as error:
                return f"{error}{self._others(extraction)}"
        return None

    def _others(self, extraction: Extraction) -> str:
        """Differences between existing stores and missing ones, for a message."""
        differences = ""
        for _, store in extraction.stores:
            for other in sorted(store.root.glob(f"{store.stream}-*/{FACTS}")):
                found = store.differences(read_object(other) or {})
                if found and not store.folder.exists():
                    differences += f" {other.parent} differs in {', '.join(found)}."
        return differences

    def _check_root(self) -> None:
        given = self._remote.root if self._remote else self.config.root
        for root in {*self._roots.values(), *([Path(given)] if given else [])}:
            if (root / FACTS).exists():
                self._reject_root(root)

    def _reject_root(self, root: Path) -> NoReturn:
        facts = read_object(root / FACTS) or {}
        for group in self.groups:
            for _, store in group.extraction.stores:
                found = store.differences(facts)
                if facts.get("stream") == store.stream and found:
                    raise UserError(
                        f"run.features.root: {root} is a store of other features; it differs in "
                        f"{', '.join(found)}. Set it to the parent folder."
                    )
        raise UserError(f"run.features.root: {root} is itself a store; set its parent folder.")
