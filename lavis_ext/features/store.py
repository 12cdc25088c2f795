"""What lies on disk: tokens of one encoder for many images.

    ROOT/STREAM-KEY.lock                    held by who writes
    ROOT/STREAM-KEY/store.json              what the key is a hash of
                  DIGEST.safetensors      a shard: tokens of some images, its bytes' hash its name
                  index.arrow             where each image is

A shard appears when it is whole, and lists its images, so shards alone tell how far an extraction
came; the index is written from them at the end. Equal images, encoder and options give equal
files, whatever interrupted the work.
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
"""To be raised with every change of what is written."""
FACTS = "store.json"
INDEX = "index.arrow"
SUFFIX = ".safetensors"
METADATA = "lavis_ext"
ROWS = "rows"
"""In the metadata: checksums of the rows of each tensor."""
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
    """An image file as it was when it was encoded."""

    image: str
    size: int
    mtime_ns: int
    digest: str
    """Hash of the file's bytes: copies of a data set have other times."""

    @classmethod
    def of(cls, image: str, path: Path) -> "ImageState":
        """The state of an image's file. Raises UserError for one that can't be read."""
        try:
            status = path.stat()
            return cls(image, status.st_size, status.st_mtime_ns, file_digest(path))
        except OSError as error:
            raise UserError(f"{path}: the image can't be read ({error.strerror}).") from None

    def holds(self, path: Path) -> bool:
        """Whether the file is still the same."""
        status = path.stat()
        if status.st_size != self.size:
            return False
        return status.st_mtime_ns == self.mtime_ns or file_digest(path) == self.digest


@dataclass(frozen=True)
class Shard:
    """A file of tokens.

    Attributes:
        path: the file.
        images: what it holds, in order.
    """

    path: Path
    images: tuple[ImageState, ...]

    def current(self, wanted: frozenset[str], folder: ImageFolder) -> bool:
        """Whether none of the ``wanted`` images has changed since."""
        return all(
            state.holds(folder.path(state.image)) for state in self.images if state.image in wanted
        )


@dataclass(frozen=True)
class FeatureStore:
    """The tokens that one encoder gave for images prepared in one way.

    Attributes:
        root: folder of all stores.
        facts: what the tokens depend on, but for the images.
        tokens: tokens of a view T.
        width: channels of a token C.
    """

    root: Path
    facts: Mapping[str, Any]
    tokens: int
    width: int

    @property
    def stream(self) -> str:
        """The stream's name."""
        return str(self.facts["stream"])

    @property
    def views(self) -> int:
        """Views of each image."""
        return int(self.facts["views"])

    @property
    def bytes_an_image(self) -> int:
        """Bytes that the tokens of all views of an image take."""
        return self.views * self.tokens * bytes_a_token(self.width, self.facts["dtype"])

    @cached_property
    def key(self) -> str:
        """A hash of the facts."""
        text = json.dumps({**self.facts, "format": FORMAT}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def folder(self) -> Path:
        """Where this store is, or would be."""
        return self.root / f"{self.stream}-{self.key}"

    def begin(self) -> None:
        """Make the folder, and remove what an interrupted process had written aside.

        Needs the lock, and that no process is writing.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            for left in self.folder.glob(".*"):
                left.unlink()
            write_json(self.folder / FACTS, dict(self.facts))
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def lock(self) -> Lock:
        """The lock of who writes. Raises UserError where the folder can't be written."""
        try:
            return Lock(self.folder.with_suffix(".lock"))
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def write_shard(
        self, images: Sequence[ImageState], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Write ``tokens`` [images * views, T, C], and ``scales`` [images * views, T] of int8.

        Raises UserError where the disk is full, or can't be written.
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
            raise _unwritable(self.folder, error) from None

    def files(self) -> list[Path]:
        """The shards' files, by name."""
        return sorted(self.folder.glob(f"[0-9a-f]*{SUFFIX}"))

    def shards(self) -> tuple[list[Shard], list[Path]]:
        """The shards, by name, and those files that are no shards of this store any more."""
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
        """Write the index of these shards, and remove all others. Needs the lock."""
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
            raise _unwritable(self.folder, error) from None
        used = {name for name, _, _ in rows.values()}
        for path in self.files():
            if path.name not in used:
                path.unlink()

    def index(self) -> pa.Table | None:
        """The index (``INDEX_SCHEMA``), by image; None where there is none, or a damaged one."""
        try:
            index = pa.ipc.open_file(pa.memory_map(str(self.folder / INDEX))).read_all()
            index.validate(full=True)  # Arrow believes what it maps
        except (OSError, pa.ArrowException):
            return None
        return index if index.schema == INDEX_SCHEMA else None

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """In what a store of these ``facts`` differs from this one, as lines for a message."""
        ours, theirs = _flat(self.facts), _flat(facts)
        return [
            f"{name} ({theirs.get(name)} there, {ours.get(name)} here)"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]


def file_digest(path: Path) -> str:
    """Hash of a file's bytes. Raises OSError where it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def row_checksum(row: torch.Tensor) -> int:
    """CRC-32 of a row of a shard: quick enough to be computed whenever one is read."""
    return zlib.crc32(row.reshape(-1).view(torch.uint8).numpy().data)


def altered(shard: Path) -> bool:
    """Whether the bytes of a shard's file are others than those that were written."""
    try:
        return file_digest(shard) != shard.stem
    except OSError:
        return True


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: the features can't be written ({error.strerror or error}). What is finished is "
        "kept: make room, or name another folder with run.features.root, and start again."
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
