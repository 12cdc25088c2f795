"""The feature store on disk: tokens of one encoder for many images.

    ROOT/STREAM-KEY.lock                    held by the writer
    ROOT/STREAM-KEY/store.json              the facts whose hash is the key
                  DIGEST.safetensors      a shard: tokens of some images, named by its hash
                  index.arrow             each image's shard and row

Shards are written atomically and list their images, so they record an extraction's progress; the
index is built from them at the end. The same images, encoder and options give identical files, with
or without interruptions.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import parse_json, write_json, written_aside
from lavis_ext.common.locks import Lock
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.features.precision import bytes_a_token

FORMAT = 2
"""Version of the file format; increase it with every change."""
FACTS = "store.json"
INDEX = "index.arrow"
SUFFIX = ".safetensors"
METADATA = "lavis_ext"
ROWS = "rows"
"""Metadata key of the row checksums of each tensor."""
INDEX_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int32()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("digest", pa.string()),
    ]
)


class ImageState(NamedTuple):
    """State of an image file at the time of encoding."""

    image: str
    size: int
    mtime_ns: int
    digest: str
    """Hash of the file's bytes; unlike the time, it is the same in copies of a data set."""

    @classmethod
    def of(cls, image: str, images: ImageFolder) -> "ImageState":
        """State of an image's file. Raises UserError if it can't be read."""
        try:
            return cls(image, *images.stamp(image), images.digest(image))
        except OSError as error:
            where = f"{images.folder}/{image}"
            raise UserError(f"{where}: the image can't be read ({error.strerror}).") from None

    def holds(self, images: ImageFolder) -> bool:
        """Whether the file is still the same."""
        size, mtime_ns = images.stamp(self.image)
        if size != self.size:
            return False
        return mtime_ns == self.mtime_ns or images.digest(self.image) == self.digest


@dataclass(frozen=True)
class Shard:
    """A file with the tokens of some images.

    Attributes:
        path: path of the file.
        images: states of its images, in order.
    """

    path: Path
    images: tuple[ImageState, ...]

    def current(self, wanted: frozenset[str], folder: ImageFolder) -> bool:
        """Whether all ``wanted`` images are unchanged since encoding."""
        return all(state.holds(folder) for state in self.images if state.image in wanted)


@dataclass(frozen=True)
class FeatureStore:
    """One encoder's tokens for images with the same processing.

    Attributes:
        root: folder of all stores.
        facts: everything but the images that determines the tokens.
        tokens: number of tokens T per view.
        width: number of channels C per token.
    """

    root: Path
    facts: Mapping[str, Any]
    tokens: int
    width: int

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return str(self.facts["stream"])

    @property
    def views(self) -> int:
        """Stored views per image."""
        return int(self.facts["views"])

    @property
    def bytes_an_image(self) -> int:
        """Bytes per image, over all views."""
        return self.views * self.tokens * bytes_a_token(self.width, self.facts["dtype"])

    @cached_property
    def key(self) -> str:
        """Hash of ``facts``."""
        text = json.dumps({**self.facts, "format": FORMAT}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def folder(self) -> Path:
        """Folder of the store, which need not exist."""
        return self.root / f"{self.stream}-{self.key}"

    def begin(self) -> None:
        """Create the folder and remove an interrupted process's temporary files.

        Requires the lock, and no process may be writing.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            for left in self.folder.glob(".*"):
                left.unlink()
            write_json(self.folder / FACTS, dict(self.facts))
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def lock(self) -> Lock:
        """Lock of the writer. Raises UserError for a read-only folder."""
        try:
            return Lock(self.folder.with_suffix(".lock"))
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def write_shard(
        self, images: Sequence[ImageState], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Write ``tokens`` [images * views, T, C] and, for int8, ``scales`` [images * views, T].

        Raises UserError for a full or read-only disk.
        """
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        rows = {name: [row_checksum(row) for row in tensor] for name, tensor in tensors.items()}
        metadata = json.dumps({"key": self.key, "images": images, ROWS: rows})
        contents = save(tensors, {METADATA: metadata})
        name = hashlib.blake2b(contents, digest_size=16).hexdigest()
        try:
            with written_aside(self.folder / f"{name}{SUFFIX}") as aside:
                aside.write_bytes(contents)
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def files(self) -> list[Path]:
        """Paths of the shards, sorted by name."""
        return sorted(self.folder.glob(f"[0-9a-f]*{SUFFIX}"))

    def shards(self) -> tuple[list[Shard], list[Path]]:
        """Shards sorted by name, and paths of files that are damaged or of another store."""
        found, damaged = [], []
        for path in self.files():
            try:
                with safe_open(path, framework="pt") as file:
                    listed = parse_json((file.metadata() or {})[METADATA])
                if listed["key"] != self.key:
                    raise ValueError("of another store")
                images = tuple(ImageState(*each) for each in listed["images"])
                found.append(Shard(path, images))
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                damaged.append(path)
        return found, damaged

    def write_index(self, shards: Iterable[Shard]) -> None:
        """Write the index of these shards and remove all others. Requires the lock."""
        rows = {
            state.image: (shard.path.name, row, state)
            for shard in shards
            for row, state in enumerate(shard.images)
        }
        columns = [
            {
                "image": image,
                "shard": name,
                "row": row,
                "size": state.size,
                "mtime_ns": state.mtime_ns,
                "digest": state.digest,
            }
            for image, (name, row, state) in sorted(rows.items())
        ]
        table = pa.Table.from_pylist(columns, INDEX_SCHEMA)
        try:
            with (
                written_aside(self.folder / INDEX) as aside,
                pa.ipc.new_file(aside, INDEX_SCHEMA) as writer,
            ):
                writer.write_table(table)
        except OSError as error:
            raise unwritable(self.folder, error) from None
        used = {name for name, _, _ in rows.values()}
        for path in self.files():
            if path.name not in used:
                path.unlink()

    def index(self) -> pa.Table | None:
        """Index (``INDEX_SCHEMA``) sorted by image; None if missing or damaged."""
        try:
            index = pa.ipc.open_file(pa.memory_map(str(self.folder / INDEX))).read_all()
            index.validate(full=True)  # Arrow doesn't check mapped files
        except (OSError, pa.ArrowException):
            return None
        return index if index.schema == INDEX_SCHEMA else None

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """Differences between a store of these ``facts`` and this one, for a message."""
        ours, theirs = _flat(self.facts), _flat(facts)
        return [
            f"{name} ({theirs.get(name)} there, {ours.get(name)} here)"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]


def file_digest(path: Path) -> str:
    """Hash of a file's bytes. Raises OSError for an unreadable file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def row_checksum(row: torch.Tensor) -> int:
    """CRC-32 of a row of a shard, fast enough for every read."""
    return zlib.crc32(row.reshape(-1).view(torch.uint8).numpy().data)


def altered(shard: Path) -> bool:
    """Whether a shard's bytes have changed since it was written."""
    try:
        return file_digest(shard) != shard.stem
    except OSError:
        return True


def unwritable(folder: Path, error: OSError) -> UserError:
    """Error for a full or read-only disk."""
    return UserError(
        f"{folder}: the features can't be written ({error.strerror or error}). Finished shards are "
        "kept: free some disk space, or set another folder with run.features.root (for copies from "
        "an address, run.features.cache), and start again."
    )


def _flat(facts: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= (
            _flat(value, f"{where}{name}.")
            if isinstance(value, Mapping)
            else {f"{where}{name}": value}
        )
    return flat
