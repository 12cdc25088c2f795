"""Writing files so that no reader ever sees half of one."""

import json
import os
import re
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
        if re.fullmatch(r"\..+\.\d+", path.name):
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
