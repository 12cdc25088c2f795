"""Work that one process does and others wait for: a lock file, in which its holder says how far.

The system takes the lock from a process that dies.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from weakref import WeakSet

SECONDS_A_LINE = 5.0
SECONDS_A_LOOK = 0.2

_locks: "WeakSet[Lock]" = WeakSet()


class Lock:
    """The lock of a file, which is made where it is missing. Closing unlocks it.

    Raises OSError where there can't be such a file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+")
        _locks.add(self)

    def taken(self) -> bool:
        """Whether this process has the lock now; if another one holds it, after a short wait."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(SECONDS_A_LOOK)
            return False
        return True

    def tell(self, text: str) -> None:
        """Say to those who wait how far the work is; a full disk may keep it from them."""
        with suppress(OSError):
            self._file.truncate(0)
            os.write(self._file.fileno(), text.encode())

    def told(self) -> str:
        """What the holder said last."""
        self._file.seek(0)
        return self._file.read()

    def close(self) -> None:
        """Unlock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leave_to_parent() -> None:
    for lock in _locks:
        lock.close()


# A loader worker outlives a process that is killed by seconds, and would hold its locks so long.
os.register_at_fork(after_in_child=_leave_to_parent)


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
