"""Work that one process does while others wait: a lock, and a note of its holder's progress.

The system releases the lock of a process that dies. File systems without locks are an OSError:
the marker files that ``filelock`` can use there instead outlive a process on another machine, and
a job that is requeued to another node would never go on.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

SECONDS_A_LINE = 5.0
SECONDS_A_LOOK = 0.2


class Lock:
    """The lock of a file, which is made where it is missing. Closing unlocks it.

    A child process inherits no lock: loader workers outlive a killed process by seconds.

    Raises OSError where there can't be such a file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._lock = FileLock(path, blocking=False, thread_local=False, preserve_lock_file=True)
        # Windows lets nobody read a locked file.
        self._note = path.with_name(f".{path.name}.progress")

    def taken(self) -> bool:
        """Whether this process has the lock now; if another one holds it, after a short wait."""
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire()
        except Timeout:
            time.sleep(SECONDS_A_LOOK)
            return False
        return True

    def tell(self, text: str) -> None:
        """Tell those who wait how far the work is; a full disk may keep it from them."""
        with suppress(OSError):
            self._note.write_text(text, encoding="utf-8")

    def told(self) -> str:
        """What the holder said last."""
        try:
            return self._note.read_text(encoding="utf-8")
        except OSError:  # nothing yet
            return ""

    def close(self) -> None:
        """Unlock."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._note.unlink(missing_ok=True)
            self._lock.release(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Regularly:
    """Tells whether ``SECONDS_A_LINE`` have passed since it last said so, or since the start."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time again."""
        now = time.monotonic()
        if now - self._last < SECONDS_A_LINE:
            return False
        self._last = now
        return True
