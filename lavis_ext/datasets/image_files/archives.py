"""Images in zip and tar archives, read where they are."""

import json
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any, cast

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import parse_json
from lavis_ext.datasets.image_files.base import (
    Bytes,
    ImageFiles,
    check_size,
    damage_reported,
    unreadable,
    unreadable_reported,
)
from lavis_ext.datasets.image_files.cache import Cache

AT_ONCE = 2**23
"""Bytes of a request for headers: far fewer requests than members."""
ENCRYPTED = 0x1
"""Flag of a zip member."""


class ZipFiles(ImageFiles):
    """Files of a zip archive. Links aren't followed; of equal names the last one counts.

    Raises UserError for a damaged or encrypted archive.
    """

    def __init__(self, source: Bytes) -> None:
        self.place, self.version = source.place, source.version
        self._source = source
        self._archive: zipfile.ZipFile | None = None
        self._stored: dict[str, str] = {}
        for member in self._opened().infolist():
            if member.flag_bits & ENCRYPTED:
                raise UserError(
                    f"{self.place}: the archive is encrypted ('{shortened(member.filename)}'). "
                    "Unpack it with its password, and set the folder."
                )
            if not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16):
                # Programs of Windows may write \\, which the format doesn't allow.
                name = member.filename.replace("\\", "/").removeprefix("./")
                self._stored[name] = member.filename

    def names(self) -> Iterator[str]:
        """Names of the members that are files."""
        return iter(self._stored)

    def size(self, name: str) -> int:
        """Unpacked size in bytes."""
        return self._opened().getinfo(self._stored[name]).file_size

    def read(self, name: str) -> bytes:
        """Content of a member; its checksum is verified."""
        check_size(self.place, name, self.size(name))
        with unreadable_reported(self.place, name):
            return self._opened().read(self._stored[name])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            with damage_reported(self.place, "zip archive"):
                self._archive = zipfile.ZipFile(self._source.as_file())
        return self._archive


class TarFiles(ImageFiles):
    """Files of a tar archive, such as a WebDataset shard; its headers are read once.

    Links aren't followed; of equal names the last one counts. Raises UserError for a damaged or
    compressed archive.

    Args:
        source: the archive.
        cache: keeps the list of members, which takes reading the whole archive at an address.
    """

    def __init__(self, source: Bytes, cache: Cache | None = None) -> None:
        self.place, self.version = source.place, source.version
        self._source = source
        self._members: dict[str, tuple[int, int]] = {}
        key = f"members of {self.place}\0{self.version}\0{source.size}"
        if cache is not None and (listed := cache.get(key)) is not None:
            self._members = {name: (start, size) for name, start, size in parse_json(listed)}
            return
        self._read_headers(AT_ONCE if cache is not None else None)
        if cache is not None:
            every = [(name, *where) for name, where in self._members.items()]
            cache.put(key, json.dumps(every).encode())

    def _read_headers(self, buffer: int | None) -> None:
        advice = "Download it again; if it is compressed, decompress it."
        with (
            damage_reported(self.place, "tar archive", advice),
            tarfile.open(fileobj=self._source.as_file(buffer), mode="r:") as archive,
        ):
            for member in archive:
                cast(Any, archive).members = []  # otherwise it keeps them all
                if member.isreg() and not member.issparse():
                    name = member.name.removeprefix("./")
                    self._members[name] = member.offset_data, member.size

    def names(self) -> Iterator[str]:
        """Names of the regular files."""
        return iter(self._members)

    def size(self, name: str) -> int:
        """Size in bytes."""
        return self._members[name][1]

    def read(self, name: str) -> bytes:
        """Content of a member, in one read."""
        start, size = self._members[name]
        check_size(self.place, name, size)
        try:
            found = self._source.read(start, size)
        except OSError as error:
            raise unreadable(self.place, name, error) from None
        if len(found) != size:
            raise unreadable(self.place, name, f"{len(found):,} of {size:,} bytes")
        return found
