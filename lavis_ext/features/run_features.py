"""The features of a run: which images of which splits, and the stores that hold them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import parse_json, room_in
from lavis_ext.datasets.base import PictureDataset
from lavis_ext.datasets.mixed import split_of
from lavis_ext.encoders.base import Encoder
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.extraction import GIB, Extraction, damage
from lavis_ext.features.reader import IncompleteStore, RandomFeatures, StoredFeatures, StoredStream
from lavis_ext.features.store import FACTS, FeatureStore
from lavis_ext.models.base import TrainableModel


@dataclass(frozen=True)
class Alike:
    """Splits whose images are prepared alike, and so are in the same stores."""

    splits: tuple[str, ...]
    extraction: Extraction

    def opened(self) -> list[StoredStream]:
        """The stores, to be read from. Raises UserError as :class:`StoredStream` does."""
        side = self.extraction.config.pooling
        return [
            StoredStream(store, (encoder.grid[0] // side, encoder.grid[1] // side), encoder.prefix)
            for encoder, store in self.extraction.stores
        ]


class RunFeatures:
    """What a run's data sets read in place of images.

    Args:
        config: the section ``run.features``.
        datasets: data sets by split.
        model: a model, its parameters frozen but for what is trained.

    Raises UserError for encoders that are trained, which change what is stored, and for options
    that don't fit them.
    """

    def __init__(
        self,
        config: FeaturesConfig,
        datasets: Mapping[str, PictureDataset],
        model: TrainableModel,
    ) -> None:
        self.config = config
        images = next(iter(datasets.values())).images
        self._root = Path(config.root) if config.root else images.folder.parent / "features"
        self._datasets = datasets
        self._model = model
        streams = model.streams
        if not streams:
            raise UserError(
                f"run.features: {type(model).__name__} has no streams whose output can be stored; "
                "leave the section out."
            )
        for name, encoder in streams.items():
            self._check(name, encoder)
        weights = {name: encoder.fingerprint() for name, encoder in streams.items()}
        groups: dict[tuple[Path, str], list[str]] = {}
        for split, dataset in datasets.items():
            how = json.dumps(self._prepared(split, dataset))
            groups.setdefault((dataset.images.folder, how), []).append(split)
        self.groups = [
            self._group(json.loads(how), splits, streams, weights)
            for (_, how), splits in groups.items()
        ]

    def use(self, device: torch.device, workers: int) -> None:
        """Let the data sets read features, made first where the config says so.

        Entered by every process. Raises UserError for stores that lack something, or of another
        model, and as :meth:`make` does.
        """
        self._refuse_store_as_root()
        incomplete = distributed.from_main_process(self._incomplete)
        if incomplete and self.config.make:
            self.make(device, workers)
            incomplete = distributed.from_main_process(self._incomplete)
        if incomplete:
            raise UserError(
                f"{incomplete} Make it with run.features.make=true, or beforehand with "
                "python -m lavis_ext.features.extract and the run's config."
            )
        for group in self.groups:
            streams = group.opened()
            for split in group.splits:
                self._datasets[split].features = StoredFeatures(
                    streams, self.config, augment=split_of(split) == "train"
                )

    def stand_in(self) -> None:
        """Let the data sets read random tokens of the stores' shapes, to measure without stores."""
        for group in self.groups:
            stand_in = RandomFeatures(group.extraction.stores, self.config)
            for split in group.splits:
                self._datasets[split].features = stand_in

    def make(self, device: torch.device, workers: int, *, rebuild: bool = False) -> None:
        """Make what the stores lack; see :meth:`Extraction.run`."""
        self._refuse_store_as_root()
        self._model.to(device).eval()
        for group in self.groups:
            group.extraction.run(device, workers, rebuild=rebuild)

    def verify(self) -> None:
        """Read all shards. Raises UserError for damaged ones, and for what the stores lack.

        Entered by every process.
        """
        damaged = [path for group in self.groups for path in group.extraction.damaged()]
        if damaged:
            raise UserError(damage(damaged))
        if incomplete := distributed.from_main_process(self._incomplete):
            raise UserError(incomplete)

    def size(self) -> str:
        """What the stores take on disk when nothing is missing, and what is free, as a line."""
        needed = sum(
            len(group.extraction.wanted) * store.bytes_an_image
            for group in self.groups
            for _, store in group.extraction.stores
        )
        free = room_in(self._root)
        return f"{needed / GIB:.3g} GiB in {self._root}, where {free / GIB:.3g} GiB are free"

    def _check(self, name: str, encoder: Encoder) -> None:
        side = self.config.pooling
        if any(split_of(split) == "train" for split in self._datasets) and encoder.trained():
            raise UserError(
                f"run.trainable lets the encoder of the {name} stream be trained, and "
                "stored features would be those of its start. Freeze it, or leave run.features out."
            )
        if encoder.grid[0] % side or encoder.grid[1] % side:
            raise UserError(
                f"run.features.pooling is {side}; it must divide the {name} stream's grid, "
                f"{encoder.grid[0]}x{encoder.grid[1]}."
            )

    def _prepared(self, split: str, dataset: PictureDataset) -> dict[str, Any]:
        """How images of a split are prepared."""
        processor: Any = dataset.processor
        views = self.config.views if split_of(split) == "train" else 1
        if views > 1 and not getattr(processor, "random", True):
            raise UserError(
                f"run.features.views is {views}, and vis_processor.train gives the same image "
                "every time; let it draw at random (crop, jitter), or store one view."
            )
        if views == 1 and getattr(processor, "random", False):
            raise UserError(
                f"The processor of split '{split}' draws at random, and one stored view would fix "
                "what it draws; set run.features.views to more, or leave crop and jitter out."
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
        stores = [
            (encoder, self._store(name, encoder, weights[name], how))
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
        self, stream: str, encoder: Encoder, weights: str, how: dict[str, Any]
    ) -> FeatureStore:
        facts = {
            "stream": stream,
            "encoder": {"weights": weights, **encoder.fingerprint_options()},
            "dtype": self.config.dtype,
            "pooling": self.config.pooling,
            **how,
        }
        patches = encoder.grid[0] * encoder.grid[1] // self.config.pooling**2
        return FeatureStore(self._root, facts, patches + encoder.prefix, encoder.width)

    def _incomplete(self) -> str | None:
        """The first thing that a store lacks, as a sentence."""
        for group in self.groups:
            extraction = group.extraction
            try:
                for stream in group.opened():
                    stream.refuse_missing(extraction.wanted, extraction.images)
            except IncompleteStore as error:
                return f"{error}{self._others(extraction)}"
        return None

    def _others(self, extraction: Extraction) -> str:
        """In what the stores that are there differ from those that aren't."""
        told = ""
        for _, store in extraction.stores:
            for other in sorted(store.root.glob(f"{store.stream}-*/{FACTS}")):
                if not store.folder.exists() and (found := store.differences(_facts(other))):
                    told += f" {other.parent} differs in {', '.join(found)}."
        return told

    def _refuse_store_as_root(self) -> None:
        root = self._root
        if not (root / FACTS).exists():
            return
        facts = _facts(root / FACTS)
        for group in self.groups:
            for _, store in group.extraction.stores:
                found = store.differences(facts)
                if facts.get("stream") == store.stream and found:
                    raise UserError(
                        f"run.features.root: {root} is a store of other features; it differs in "
                        f"{', '.join(found)}. Name the folder above it, where each has its own."
                    )
        raise UserError(f"run.features.root: {root} is itself a store; name the folder above it.")


def _facts(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
