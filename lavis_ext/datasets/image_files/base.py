"""Interfaces of image files and of the bytes that they are read from."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, shortened

MOST_BYTES = 2**28
"""Maximum size of an image file; a larger one is a mistake or a decompression bomb."""
BUFFER = 2**16


class Bytes(ABC):
    """Content of one file, read at any position.

    Attributes:
        place: path or address, for messages.
        size: size in bytes.
        version: changes with the content, such as a time or an ETag.
    """

    place: str
    size: int
    version: str

    @abstractmethod
    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer at the end. Raises OSError or UserError."""

    def as_file(self, buffer: int | None = None) -> io.BufferedReader:
        """A seekable file over these bytes; independent of others, and of those of forks.

        It reads at least ``buffer`` bytes at once, by default ``BUFFER``.
        """
        return io.BufferedReader(_RawFile(self), buffer or BUFFER)


class LocalBytes(Bytes):
    """A file of this machine. Raises UserError if it can't be opened.

    Positions in it are those of when it was opened, so reading it after a change raises UserError.
    A file that is replaced stays as it was for processes that have it open.
    """

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._path = path
        self._descriptor: int | None = None
        try:
            status = os.fstat(self._fd())
        except OSError as error:
            raise UserError(
                f"{path}: the image archive can't be read ({error.strerror})."
            ) from None
        self.size = status.st_size
        self.version = str(status.st_mtime_ns)

    def read(self, start: int, length: int) -> bytes:
        """Positioned reads, which forked processes can share a descriptor for."""
        status = os.fstat(self._fd())
        if (status.st_size, str(status.st_mtime_ns)) != (self.size, self.version):
            raise UserError(
                f"{self.place}: the image archive has changed during the run. Start it again."
            )
        parts = []
        while length > 0 and (part := os.pread(self._fd(), length, start)):
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return b"".join(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _fd(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        return self._descriptor


class _RawFile(io.RawIOBase):
    def __init__(self, source: Bytes) -> None:
        super().__init__()
        self._source = source
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._source.size}[whence]
        if start + offset < 0:
            raise OSError("a position before the start of the file")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        found = self._source.read(self._place, len(buffer))
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


class ImageFiles(ABC):
    """Files by name; names have ``/`` between folders.

    Attributes:
        place: path or address, for messages.
        version: changes with the content.
    """

    place: str
    version: str

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Names of all files."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size in bytes; None if only a read would tell."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file. Raises UserError naming the file if it can't be read."""

    def version_of(self, name: str) -> str:
        """Version of a file; by default that of all of them."""
        return self.version

    def is_second_name(self, name: str) -> bool:
        """Whether the file has another name too, so that this one is dispensable."""
        return False


class JoinedFiles(ImageFiles):
    """The files of several archives, such as shards.

    Raises UserError for a name that is in two of them; a second name is left out instead.
    """

    def __init__(self, place: str, parts: Sequence[ImageFiles]) -> None:
        self.place = place
        self.version = " ".join(part.version for part in parts)
        self._parts = parts
        self._part_of: dict[str, int] = {}
        ambiguous = set()
        for number, part in enumerate(parts):
            for name in part.names():
                other = self._part_of.setdefault(name, number)
                if other != number and part.is_second_name(name):
                    ambiguous.add(name)
                elif other != number:
                    raise UserError(
                        f"{part.place}: '{shortened(name)}' is in {parts[other].place} too. Give "
                        "files of one data set only."
                    )
        for name in ambiguous:
            del self._part_of[name]

    def names(self) -> Iterator[str]:
        """Names in all archives."""
        return iter(self._part_of)

    def size(self, name: str) -> int | None:
        """Size in bytes."""
        return self._of(name).size(name)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        return self._of(name).read(name)

    def version_of(self, name: str) -> str:
        """Version of the file's archive."""
        return self._of(name).version_of(name)

    def _of(self, name: str) -> ImageFiles:
        return self._parts[self._part_of[name]]


@contextmanager
def damage_reported(place: str, kind: str, advice: str = "Download it again.") -> Iterator[None]:
    """Raise UserError for a damaged archive or table, for which readers raise any type."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = shortened(str(error), 120)
        raise UserError(f"{place}: not a whole {kind} ({reason}). {advice}") from None


@contextmanager
def unreadable_reported(place: str, name: str) -> Iterator[None]:
    """Raise UserError for a file that can't be read, for which readers raise any type."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise unreadable(place, name, error) from None


def unreadable(place: str, name: str, error: object) -> UserError:
    """Error for a file that can't be read."""
    reason = getattr(error, "strerror", None) or str(error) or repr(error)
    where = f"{place}/{shortened(name)}" if name else place
    return UserError(f"{where}: the image can't be read ({shortened(reason, 120)}).")


def check_size(place: str, name: str, size: int) -> None:
    """Raise UserError for a file that is too large for an image."""
    if size > MOST_BYTES:
        raise unreadable(place, name, f"{size:,} bytes; an image file has at most {MOST_BYTES:,}")
