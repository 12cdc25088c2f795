"""Files at addresses: whatever fsspec reads, such as s3://, https:// and memory://. Read only.

Each file system has exceptions of its own; all become a UserError that names the address.
"""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lavis_ext.common.errors import UserError, shortened

Found = TypeVar("Found")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the local disk, to which a file is copied."""
VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "md5Hash")
"""Entries of fsspec's file information that change with the content."""


class RemoteFile(NamedTuple):
    """A file at an address.

    Attributes:
        path: path in its file system.
        size: size in bytes; None where the server doesn't tell, as in listings over HTTP.
        version: changes with the content; empty where the server doesn't tell.
    """

    path: str
    size: int | None
    version: str


class Address:
    """An address, with its file system opened anew in each process: most can't be forked.

    Methods raise UserError for what can't be read.

    Attributes:
        text: the address.
        named: the same for messages.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.named = text.rstrip("/")  # that of an HTTP folder matters to the server
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def system(self) -> Any:
        """fsspec's file system."""
        return self._of_process()[1]

    @property
    def path(self) -> str:
        """Path of the address in its file system."""
        return self._of_process()[2]

    def file(self) -> RemoteFile | None:
        """The file at this address; None for a folder."""
        info = self._asked(lambda: self.system.info(self.path))
        return None if info.get("type") == "directory" else _described(self.path, info)

    def files(self) -> dict[str, RemoteFile]:
        """Files below this address, by their path below it."""
        root = self.path.rstrip("/") + "/"
        found: Mapping[str, Any] = self._asked(lambda: self.system.find(root, detail=True))
        return {
            path.removeprefix(root): _described(path, info)
            for path, info in found.items()
            if path.startswith(root) and path != root
        }

    def matching(self) -> list["Address"]:
        """Addresses that match this one's ``*``, sorted."""
        found = self._asked(lambda: self.system.glob(self.path))
        return [Address(self.system.unstrip_protocol(path)) for path in sorted(found)]

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes ``start`` to ``end`` of the file at this address, by default all."""
        found: bytes = self._asked(lambda: self.system.cat_file(self.path, start=start, end=end))
        return found

    def copy(self, file: RemoteFile, target: Path) -> None:
        """Copy a file of this address to ``target``. Raises OSError if that can't be written."""
        target.touch()  # what can't be created here isn't the server's error
        self._asked(lambda: self.system.get_file(file.path, str(target)))
        size = target.stat().st_size
        if file.size is not None and size != file.size:
            raise UserError(
                f"{self.named}: the connection ended after {size:,} of {file.size:,} bytes."
            )

    def _of_process(self) -> tuple[int, Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_file_system(self.text))
        return self._opened

    def _asked(self, ask: Callable[[], Found]) -> Found:
        try:
            return ask()
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{self.named}: there is nothing at this address.") from None
        except PermissionError as error:
            raise UserError(
                f"{self.named}: the server refuses access: {_reason(error)}. Check the "
                "credentials and their rights."
            ) from None
        except Exception as error:  # each file system has exceptions of its own
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            raise UserError(f"{self.named}: can't be read: {_reason(error)}.") from None


def is_address(place: str | Path) -> bool:
    """Whether ``place`` is an address for fsspec rather than a path."""
    return "://" in str(place)


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec  # some of its file systems take a second to import

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{address}: this kind of address can't be read ({_reason(error)})."
        ) from None
    return system, path


def _described(path: str, info: Mapping[str, Any]) -> RemoteFile:
    size = info.get("size")
    version = " ".join(str(info[name]) for name in VERSIONS if name in info)
    return RemoteFile(path, None if size is None else int(size), version)


def _reason(error: Exception) -> str:
    return shortened(str(error) or repr(error), 120)
