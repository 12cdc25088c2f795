"""A file lock for work that one process does while others wait, with a progress note.

The system releases the lock of a process that dies. File systems without locks raise OSError:
``filelock``'s alternative, marker files, would outlive a process that dies on another machine, and
a job requeued to a different node would wait forever.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

SECONDS_A_LOOK = 0.2


class Lock:
    """A file lock; the file is created if missing. Closing releases it.

    Child processes don't inherit it, since loader workers outlive a killed process by seconds.

    Raises OSError if the file can't be created.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._lock = FileLock(path, blocking=False, thread_local=False, preserve_lock_file=True)
        # A separate file, because Windows doesn't allow reading a locked one.
        self._note = path.with_name(f".{path.name}.progress")

    def taken(self) -> bool:
        """Try to take the lock; False, after a short wait, if another process holds it."""
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire()
        except Timeout:
            time.sleep(SECONDS_A_LOOK)
            return False
        return True

    def write_note(self, text: str) -> None:
        """Write a progress note for waiting processes; skipped on a full disk."""
        with suppress(OSError):
            self._note.write_text(text, encoding="utf-8")

    def read_note(self) -> str:
        """Read the holder's last progress note; empty if there is none."""
        try:
            return self._note.read_text(encoding="utf-8")
        except OSError:  # no note yet
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
