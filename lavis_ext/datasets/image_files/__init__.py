"""Image files by name, wherever they are: in archives, tables, and at addresses.

``open_files`` is the way in. Nothing is unpacked, so no name in an archive leads anywhere. Reads
are positioned (``pread``), so that forked loader workers, which share descriptors, don't disturb
each other; spawned ones open the files anew.
"""

from collections.abc import Callable
from pathlib import Path

from lavis_ext.common.addresses import Address, is_address
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.image_files.addresses import CachedFiles, RemoteBytes, RemoteFolder
from lavis_ext.datasets.image_files.archives import TarFiles, ZipFiles
from lavis_ext.datasets.image_files.base import Bytes, ImageFiles, JoinedFiles, LocalBytes
from lavis_ext.datasets.image_files.cache import Cache
from lavis_ext.datasets.image_files.parquet import ParquetFiles

ARCHIVES: dict[str, Callable[[Bytes], ImageFiles]] = {
    ".zip": ZipFiles,
    ".tar": TarFiles,
    ".parquet": ParquetFiles,
}
"""Readers by suffix."""
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def is_archive(place: str | Path) -> bool:
    """Whether a path's or address's suffix is that of an archive or table."""
    return _suffix(str(place)) in ARCHIVES


def is_pattern(place: str | Path) -> bool:
    """Whether the file's name stands for several files."""
    signs = "*" if is_address(place) else "*?"  # an address may end in ?QUERY
    return any(sign in str(place).rpartition("/")[2] for sign in signs)


def open_files(place: str | Path, cache: Cache | None = None) -> ImageFiles:
    """Image files in archives, in tables or at an address, which may be those of archives.

    ``*`` and ``?`` in a file name stand for several files, such as shards; in an address, ``*``
    does. A ``cache`` holds what is read from addresses.

    Raises UserError if there is nothing that can be read.
    """
    text = str(place)
    _refuse_compressed(text)
    if is_address(text):
        opened = _at_address(text, cache)
        return CachedFiles(opened, cache) if cache is not None else opened
    path = Path(text).expanduser()
    if is_pattern(path):
        paths = sorted(path.parent.glob(path.name))
        return _of_all(text, [_opened(LocalBytes(each)) for each in paths])
    return _opened(LocalBytes(path))


def _at_address(address: str, cache: Cache | None) -> ImageFiles:
    if is_pattern(address):
        return _of_all(address, [_opened(each, cache) for each in RemoteBytes.matching(address)])
    if is_archive(address):
        return _opened(RemoteBytes(Address(address)), cache)
    return RemoteFolder(address)


def _opened(source: Bytes, cache: Cache | None = None) -> ImageFiles:
    kind = ARCHIVES.get(_suffix(source.place))
    if kind is None:
        raise UserError(
            f"{source.place}: images are read from folders, addresses, and files that end in "
            f"{', '.join(ARCHIVES)}; this is none of them."
        )
    return TarFiles(source, cache) if kind is TarFiles else kind(source)


def _of_all(place: str, found: list[ImageFiles]) -> ImageFiles:
    if not found:
        raise UserError(f"{place}: no file matches this pattern.")
    return found[0] if len(found) == 1 else JoinedFiles(place, found)


def _suffix(place: str) -> str:
    name = place.partition("?")[0] if is_address(place) else place
    return Path(name.lower()).suffix


def _refuse_compressed(place: str) -> None:
    if place.lower().endswith(COMPRESSED_TARS):
        raise UserError(
            f"{place}: single files can't be read from a compressed tar archive. Decompress it to "
            ".tar; images are compressed already."
        )
