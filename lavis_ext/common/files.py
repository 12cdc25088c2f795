"""Writing files so that no reader ever sees half of one, or of a record, on full disks too."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(path: Path, *, flushed: bool = False) -> Iterator[Path]:
    """A path to write to; it takes the place of ``path`` when the block ends without an error.

    With ``flushed`` the file is on the disk by then, so that a machine that loses power has either
    the new file or the one before it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # safetensors writes files that only their owner can read
        if flushed:
            _flush(aside)
        aside.replace(path)
        if flushed:
            _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left of files they were writing aside."""
    for path in folder.glob(".*"):
        # The second form is safetensors', which writes aside itself.
        if re.fullmatch(r"\..+\.\d+|\.tmp\w{6}", path.name):
            path.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for any other text, however it is made."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Appended:
    """A file that grows by whole records. What can't be written waits in memory, in its order.

    Args:
        path: the file, which is made where it is missing.
        size: bytes after which the file is cut off first; None for none.

    Raises OSError where there can't be such a file.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if size is not None and size < self._size:
            os.ftruncate(self._file, size)
        self._waiting = b""

    def append(self, record: bytes) -> None:
        """Write ``record`` after those that wait. Raises OSError where they go on waiting."""
        self._waiting += record
        self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError where it goes on waiting."""
        size, rest = self._size, memoryview(self._waiting)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, size)  # a part of it may have had room
            raise
        self._waiting = b""

    def sync(self) -> int:
        """Have all records on the disk; bytes of the file. Raises OSError where they aren't."""
        self.flush()
        os.fsync(self._file)
        return self._size

    def close(self) -> None:
        """Close the file. What still waits is lost."""
        os.close(self._file)

    @property
    def _size(self) -> int:
        return os.fstat(self._file).st_size


def is_file(path: Path) -> bool:
    """Whether there is such a file. A name that no file can have, too long or with NUL, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """The same of a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def room_in(folder: Path) -> int:
    """Bytes that can be written to ``folder``, there or yet to be made. Quotas aren't seen."""
    whole = folder.absolute()
    return shutil.disk_usage(next(each for each in (whole, *whole.parents) if each.exists())).free


def size_in_words(size: float) -> str:
    """Bytes as ``"1.2 GiB"`` or ``"35 MiB"``."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
