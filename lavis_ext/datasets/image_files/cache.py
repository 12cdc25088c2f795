"""A cache of files on the local disk, of bounded size."""

import hashlib
import os
import zlib
from contextlib import suppress
from pathlib import Path

from lavis_ext.common.files import written_aside

SLACK = 16
"""A sixteenth of the limit is left free at each tidying, so that it is rare."""


CHECKSUM = 4
"""Bytes of a file's CRC32, which precedes its content."""


class Cache:
    """Files by key; the least recently used ones leave. Processes of a machine share it.

    A file that can't be written isn't cached.

    Args:
        folder: its folder, created if missing.
        limit: bytes of all files.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._added = limit  # tidied at the first addition, as the limit may be a new one

    def get(self, key: str) -> bytes | None:
        """Content of the file of ``key``; None if it isn't there, or damaged by a power loss."""
        path = self._path(key)
        try:
            found = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)  # its last use
        content = found[CHECKSUM:]
        return content if found[:CHECKSUM] == _checksum(content) else None

    def put(self, key: str, content: bytes) -> None:
        """Add a file, and remove the least recently used ones if there are too many."""
        if len(content) > self.limit // SLACK:
            return
        path = self._path(key)
        self._added += len(content)
        if self._added > self.limit // SLACK:
            self.tidy(len(content))
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as aside:
                aside.write_bytes(_checksum(content) + content)

    def tidy(self, room: int = 0) -> None:
        """Remove the least recently used files beyond the limit, ``room`` bytes kept free."""
        self._added = room
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        allowed = self.limit - self.limit // SLACK - room
        used = sum(size for _, size, _ in found)
        if used <= allowed:
            return
        for _, size, path in sorted(found):
            with suppress(OSError):  # another process may have removed it
                path.unlink()
            used -= size
            if used <= allowed:
                return

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        return self.folder / name[:2] / name[2:]


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM, "big")
