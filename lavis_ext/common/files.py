"""Atomic writes of files and records, also on full disks."""

import bz2
import codecs
import errno
import gzip
import io
import json
import lzma
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from lavis_ext.common.errors import UserError, shortened

COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda path: pa.CompressedInputStream(str(path), "zstd"),
}
"""Readers by a file's first bytes."""
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte order marks."""
SIDECARS = frozenset(
    {
        "__macosx",  # macOS's folder in a zip archive
        *("icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "@eadir", "lost+found"),
    }
)
"""Names of system metadata, in lower case."""


@contextmanager
def written_aside(path: Path, *, flushed: bool = False) -> Iterator[Path]:
    """Context manager with a temporary path that replaces ``path`` if no error is raised.

    ``flushed`` syncs the file to disk first, so that after a power loss there is either the new
    file or the previous one.

    Raises OSError for a device, pipe or socket, which would be replaced by a file. Errors of the
    operating system name ``path``.
    """
    with suppress(FileNotFoundError):
        check_regular(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # safetensors' files are readable only by their owner
        if flushed:
            _flush(aside)
        aside.replace(path)
        if flushed:
            _flush(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(aside)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # the same error again, such as a name that is too long
            aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Context manager with a new folder that is renamed to ``path`` if no error is raised."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.mkdir()
    try:
        yield aside
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_folder_name(name: str) -> bool:
    """Whether a folder can be made of a name inside another folder, and nowhere else."""
    return name.strip(" .") != "" and not set(name) & {"/", "\\", "\0"}


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes."""
    for path in folder.glob(".*"):
        # The second pattern is that of safetensors' own temporary files.
        if re.fullmatch(r"\..+\.\d+|\.tmp\w{6}", path.name):
            path.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for invalid or too deeply nested text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def object_of(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object. Raises OSError and, for another content, ValueError."""
    check_regular(path)
    content = parse_json(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a file with a JSON object; None if it is missing, unreadable or something else."""
    try:
        return object_of(path)
    except (OSError, ValueError):
        return None


def required_object(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object. Raises UserError for anything else."""
    try:
        return object_of(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({shortened(str(error), 120)}).") from None


def check_regular(path: Path) -> None:
    """Raise OSError for a missing file, a named pipe, a socket or a device.

    Opening a pipe would wait for another program, perhaps forever.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails by itself
        found = "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise OSError(errno.EINVAL, f"{found}, not a file", str(path))


def check_creatable(path: Path, *, parents: bool = False) -> None:
    """Raise OSError, before long work, if a new file or folder ``path`` couldn't be created.

    With ``parents``, missing folders above it will be created too.
    """
    folder = path.absolute().parent
    while parents and not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        code = errno.ENOTDIR if os.path.lexists(folder) else errno.ENOENT
        raise OSError(code, os.strerror(code), str(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def open_plain(path: Path) -> BinaryIO:
    """Open a file, decompressing gzip, bzip2, xz or zstd independently of its name.

    Reading a damaged archive raises one of ``DAMAGED``; opening may raise OSError, as
    :func:`check_regular` does.
    """
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(6)
    for magic, opened in COMPRESSED.items():
        if head.startswith(magic):
            return cast(BinaryIO, opened(path))
    return path.open("rb")


def read_plain(path: Path) -> str:
    """Read a text file, decompressed and decoded by its byte order mark, by default as UTF-8.

    Raises ValueError for a damaged archive or invalid text, OSError for an unreadable file.
    """
    try:
        with open_plain(path) as file:
            content = file.read()
    except DAMAGED as error:
        raise ValueError(f"a damaged archive: {error}") from None
    return content.decode(encoding_of(content)[0]).removeprefix("\ufeff")


def encoding_of(head: bytes) -> tuple[str, int]:
    """Encoding of a text that begins with ``head``, and the length of its byte order mark."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name, len(mark)
    return "utf-8", 0


def write_json(path: Path, content: Any, *, flushed: bool = False) -> None:
    """Write ``content`` as JSON; ``flushed`` as for :func:`written_aside`."""
    with written_aside(path, flushed=flushed) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Appended:
    """An append-only file of whole records; unwritable ones are kept in memory, in order.

    Args:
        path: path of the file, which is created if missing.
        size: length in bytes that the file is truncated to first; None to keep all.

    Raises OSError if the file can't be opened.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        # A file object, since closing a bare descriptor twice would close somebody else's file.
        self._file = io.FileIO(path, "ab")
        if size is not None and size < self._size:
            self._file.truncate(size)
        self._waiting = b""

    def append(self, record: bytes) -> None:
        """Append ``record`` after pending ones. Raises OSError on failure; they stay pending."""
        self._waiting += record
        self.flush()

    def flush(self) -> None:
        """Write the pending records. Raises OSError on failure; they stay pending."""
        size, rest = self._size, memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(size)  # drop a partly written record
            raise
        self._waiting = b""

    def sync(self) -> int:
        """Write and fsync all records; returns the file's size. Raises OSError on failure."""
        self.flush()
        os.fsync(self._file.fileno())
        return self._size

    def close(self) -> None:
        """Close the file, if it isn't closed yet. Pending records are lost."""
        self._file.close()

    @property
    def _size(self) -> int:
        if self._file.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(self.path))
        return os.fstat(self._file.fileno()).st_size


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False for invalid names, such as too long ones."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """Absolute path without links; of a cycle of links, where ``Path.resolve`` raises an error, or
    an invalid name, as far as it leads."""
    return Path(os.path.realpath(path))


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; False for invalid names."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_sidecar(name: str) -> bool:
    """Whether a file or folder of this name is system metadata rather than data.

    These are names with a leading dot (such as macOS's ``._1.jpg`` and ``.DS_Store``) and names of
    files that systems and archive programs leave in folders.
    """
    return name.startswith(".") or name.lower() in SIDECARS


def entries(folder: Path) -> list[Path]:
    """Paths in a folder, sorted, without sidecars. Raises OSError if it can't be listed."""
    return sorted(path for path in folder.iterdir() if not is_sidecar(path.name))


def user_cache(name: str) -> Path:
    """Folder of this user's copies of what is elsewhere, which need not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "lavis_ext" / name


def free_space(folder: Path) -> int:
    """Free disk space in bytes for ``folder``, which need not exist. Quotas are ignored."""
    whole = folder.absolute()
    return shutil.disk_usage(next(each for each in (whole, *whole.parents) if each.exists())).free


def size_in_words(size: float) -> str:
    """Format bytes as ``"1.2 GiB"``, ``"35 MiB"`` or ``"0.4 KiB"``."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 2**10:.3g} KiB"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
