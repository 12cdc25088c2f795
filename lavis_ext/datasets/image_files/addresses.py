"""Images at addresses, with a local cache."""

from collections.abc import Iterator, Sequence

from lavis_ext.common.addresses import Address
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.image_files.base import (
    Bytes,
    ImageFiles,
    check_size,
    unreadable_reported,
)
from lavis_ext.datasets.image_files.cache import Cache


class RemoteBytes(Bytes):
    """A file at an address. Raises UserError if it isn't there."""

    def __init__(self, address: Address) -> None:
        self.place = address.text
        self._at = address
        file = address.file()
        if file is None or file.size is None:
            raise UserError(
                f"{self.place}: the server reports no size, so parts of the file can't be read. "
                "Download it, and set its path."
            )
        self.size, self.version = file.size, file.version

    @classmethod
    def matching(cls, pattern: str) -> Sequence["RemoteBytes"]:
        """The files that match an address with ``*``."""
        return [cls(address) for address in Address(pattern).matching()]

    def read(self, start: int, length: int) -> bytes:
        """A request for this range. Raises UserError if it fails."""
        end = min(start + length, self.size)
        if end <= start:
            return b""
        found = self._at.read(start, end)
        if len(found) != end - start:
            raise UserError(
                f"{self.place}: asked for {end - start:,} bytes, the server sent {len(found):,}; "
                "it may not support range requests. Download the file, and set its path."
            )
        return found


class RemoteFolder(ImageFiles):
    """The files below an address, listed once. Raises UserError if there is nothing."""

    def __init__(self, address: str) -> None:
        self.place = address.rstrip("/")
        self.version = ""
        self._at = Address(self.place + "/")
        self._files = self._at.files()
        if not self._files:
            raise UserError(f"{address}: there are no files at this address.")

    def names(self) -> Iterator[str]:
        """Names below the address."""
        return iter(self._files)

    def size(self, name: str) -> int | None:
        """Size in bytes; None where the listing has none, as over HTTP."""
        return self._files[name].size

    def version_of(self, name: str) -> str:
        """Version of the file, if the listing tells."""
        return self._files[name].version

    def read(self, name: str) -> bytes:
        """Content of a file."""
        check_size(self.place, name, self.size(name) or 0)
        with unreadable_reported(self.place, name):
            found: bytes = self._at.system.cat_file(self._files[name].path)
        return found


class CachedFiles(ImageFiles):
    """Files from elsewhere, kept in a local cache."""

    def __init__(self, files: ImageFiles, cache: Cache) -> None:
        self.place, self.version = files.place, files.version
        self._files, self._cache = files, cache

    def names(self) -> Iterator[str]:
        """Names of all files."""
        return self._files.names()

    def size(self, name: str) -> int | None:
        """Size in bytes."""
        return self._files.size(name)

    def version_of(self, name: str) -> str:
        """Version of a file."""
        return self._files.version_of(name)

    def read(self, name: str) -> bytes:
        """Content of a file, from the cache if it's there."""
        key = f"{self.place}\0{self.version_of(name)}\0{self.size(name)}\0{name}"
        found = self._cache.get(key)
        if found is None:
            found = self._files.read(name)
            self._cache.put(key, found)
        return found
