"""Readers of stored tokens, used by data sets in place of images."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import parse_json
from lavis_ext.datasets.base import StoredTokens
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.seeds import seed_of
from lavis_ext.encoders.base import Encoder
from lavis_ext.features.config import FeaturesConfig
from lavis_ext.features.precision import compressed
from lavis_ext.features.store import METADATA, ROWS, FeatureStore, ImageState, row_checksum


class IncompleteStore(UserError):
    """Raised for a store with missing or outdated features."""


class StoredStream:
    """Stored tokens of one stream, by image.

    Each process memory-maps a shard on first use; a row is copied once, into its batch.

    Args:
        store: a finished store.
        grid: rows and columns of the patches.
        prefix: tokens before the patches.

    Raises UserError for a missing store, and for a missing or damaged shard.
    """

    def __init__(self, store: FeatureStore, grid: tuple[int, int], prefix: int) -> None:
        self.store = store
        self.grid = grid
        self.prefix = prefix
        index = store.index()
        if index is None:
            raise IncompleteStore(f"{store.folder}: there is no complete feature store.")
        self._images = np.array(index["image"].to_pylist(), dtype=np.str_)
        shards = index["shard"].combine_chunks()
        self._names: list[str] = shards.dictionary.to_pylist()
        self._shards = shards.indices.to_numpy()
        self._rows = index["row"].to_numpy()
        self._index = index
        held = {shard.path.name: len(shard.images) for shard in store.shards()[0]}
        sizes = np.array([held.get(name, 0) for name in self._names], dtype=np.int32)
        outside = (self._rows < 0) | (self._rows >= sizes[self._shards])
        if outside.any():
            raise _damaged(store.folder / self._names[int(self._shards[outside.argmax()])])

    def check_complete(self, wanted: Iterable[str], images: ImageFolder) -> None:
        """Raise IncompleteStore for images with missing or outdated features."""
        names = np.array(sorted(wanted), dtype=np.str_)
        places = self._places(names)
        absent = names[places < 0]
        states = self._index.select(["image", "size", "mtime_ns", "digest"]).take(
            places[places >= 0]
        )
        changed = [
            state["image"] for state in states.to_pylist() if not ImageState(**state).holds(images)
        ]
        for kind, ids in (("lacks", absent.tolist()), ("is out of date for", changed)):
            if ids:
                raise IncompleteStore(
                    f"{self.store.folder} {kind} {len(ids)} of the {len(names)} images "
                    f"({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})."
                )

    def read(self, images: Sequence[str], views: Sequence[int]) -> dict[str, Tensor]:
        """Read ``tokens`` [I, T, C] as stored and, for int8, ``scales`` [I, T].

        Raises UserError for a missing image or altered tokens.
        """
        places = self._places(np.array(images, dtype=np.str_))
        if (places < 0).any():
            raise UserError(f"{self.store.folder} has no image '{images[int(places.argmin())]}'.")
        found: dict[str, list[Tensor]] = {}
        for place, view in zip(places.tolist(), views, strict=True):
            row = int(self._rows[place]) * self.store.views + view
            number = int(self._shards[place])
            for name, (tensor, checksums) in self._shard(number).items():
                found.setdefault(name, []).append(tensor[row])
                if row_checksum(found[name][-1]) != checksums[row]:
                    raise _damaged(self.store.folder / self._names[number])
        return {name: torch.stack(rows) for name, rows in found.items()}

    def _places(self, images: np.ndarray) -> np.ndarray:
        """Index rows of images, -1 for missing ones."""
        places = np.searchsorted(self._images, images).clip(max=len(self._images) - 1)
        return np.where(self._images[places] == images, places, -1)

    def _shard(self, number: int) -> dict[str, tuple[Any, list[int]]]:
        """A shard's sliceable tensors by name, each with the checksums of its rows."""
        if number not in self._opened:
            path = self.store.folder / self._names[number]
            try:
                file = safe_open(path, framework="pt")
                checksums = parse_json(file.metadata()[METADATA])[ROWS]
                self._opened[number] = {
                    name: (file.get_slice(name), rows) for name, rows in checksums.items()
                }
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: the shard can't be read ({error}).") from None
            except (KeyError, TypeError, AttributeError, ValueError):  # invalid metadata
                raise _damaged(path) from None
        return self._opened[number]

    @cached_property
    def _opened(self) -> dict[int, dict[str, tuple[Any, list[int]]]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_opened"}


def _damaged(shard: Path) -> UserError:
    return UserError(
        f"{shard}: the shard is missing or damaged. Rebuild it with "
        "python -m lavis_ext.features.extract --rebuild and the run's config."
    )


class StoredFeatures:
    """Reads images' tokens, with augmentation in training.

    Args:
        streams: the stored streams.
        config: the section ``run.features``.
        augment: whether to drop tokens and add noise, as in training.
    """

    def __init__(
        self, streams: Sequence[StoredStream], config: FeaturesConfig, *, augment: bool
    ) -> None:
        self._streams = streams
        self._token_dropout = config.token_dropout if augment else 0.0
        self._noise = config.noise if augment else 0.0
        self._dtype = config.dtype

    def read(self, images: Sequence[str], epoch: int) -> dict[str, StoredTokens]:
        """The images' tokens by stream.

        An image's id and the epoch determine its view, dropped tokens and noise.
        """
        found = {}
        for stream in self._streams:
            views = [seed_of(image, epoch, "view") % stream.store.views for image in images]
            stored = self._augmented(stream, stream.read(images, views), images, epoch)
            found[stream.store.stream] = stored
        return found

    def blank(self, count: int) -> dict[str, StoredTokens]:
        """Zeros in place of the tokens of ``count`` images."""
        found = {}
        for stream in self._streams:
            zeros = torch.zeros(stream.store.tokens, stream.store.width)
            stored = _stored(compressed(zeros, self._dtype), stream.grid)
            if self._noise:
                stored = StoredTokens(stored.restored(), None, stream.grid)
            found[stream.store.stream] = _repeated(stored, count)
        return found

    def _augmented(
        self, stream: StoredStream, read: dict[str, Tensor], images: Sequence[str], epoch: int
    ) -> StoredTokens:
        stored = _stored(read, stream.grid)
        if self._noise:
            stored = StoredTokens(stored.restored(), None, stream.grid)
        tokens, first = stored.values, stream.prefix
        for row, image in enumerate(images if self._noise or self._token_dropout else ()):
            random = torch.Generator().manual_seed(seed_of(image, epoch, stream.store.stream))
            if self._noise:
                size = tokens[row].square().mean(dim=-1, keepdim=True).sqrt()
                tokens[row] += self._noise * size * torch.randn(tokens[row].shape, generator=random)
            dropped = torch.rand(len(tokens[row]) - first, generator=random) < self._token_dropout
            tokens[row, first:][dropped] = 0
        return stored


class RandomFeatures:
    """Replaces :class:`StoredFeatures` without stores: the same random tokens for every image.

    Args:
        stores: encoders with their stores, which need not exist.
        config: the section ``run.features``.
    """

    def __init__(
        self, stores: Sequence[tuple[Encoder, FeatureStore]], config: FeaturesConfig
    ) -> None:
        self._streams = {}
        for encoder, store in stores:
            grid = (encoder.grid[0] // config.pooling, encoder.grid[1] // config.pooling)
            tokens = torch.randn(grid[0] * grid[1] + encoder.prefix, encoder.width)
            self._streams[store.stream] = _stored(compressed(tokens, config.dtype), grid)

    def read(self, images: Sequence[str], epoch: int) -> dict[str, StoredTokens]:
        """Like :meth:`StoredFeatures.read`."""
        return self.blank(len(images))

    def blank(self, count: int) -> dict[str, StoredTokens]:
        """Random tokens of ``count`` images."""
        return {name: _repeated(stored, count) for name, stored in self._streams.items()}


def _stored(parts: dict[str, Tensor], grid: tuple[int, int]) -> StoredTokens:
    return StoredTokens(parts["tokens"], parts.get("scales"), grid)


def _repeated(stored: StoredTokens, count: int) -> StoredTokens:
    """The tokens of one image [T, C] for ``count`` images."""
    scales = None if stored.scales is None else torch.stack([stored.scales] * count)
    return StoredTokens(torch.stack([stored.values] * count), scales, stored.grid)
