"""``status.json``: where a run is, for ``python -m lavis_ext.status``.

A thread of the main process writes the file once per second; training only sets attributes.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lavis_ext import distributed
from lavis_ext.runners.run_folder import RUNNING, STATUS

SECONDS = 1.0
"""Interval between two writes."""
END_SECONDS = 5.0


class StatusFile:
    """Keeps ``status.json`` of a run up to date until ``close``.

    A file that can't be written is left out: the run is more important.

    Args:
        folder: the folder of the run.
        current: returns what the run adds to the file, JSON; called in another thread.
    """

    def __init__(self, folder: Path, current: Callable[[], Mapping[str, Any]]) -> None:
        self._path = folder / STATUS
        self._current = current
        self._started = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)
        self._thread.start()

    def close(self, state: str, reason: str = "") -> None:
        """Write how the run ended: its state, as in ``run_folder``, and the reason."""
        self._ended.set()
        self._thread.join(END_SECONDS)  # it may hang in a network folder
        self._write(state, reason)

    def _keep(self) -> None:
        self._write(RUNNING)
        while not self._ended.wait(SECONDS):
            self._write(RUNNING)

    def _write(self, state: str, reason: str = "") -> None:
        content = {
            "state": state,
            "reason": reason,
            "time": time.time(),
            "started": self._started,
            "host": socket.gethostname(),
            "process": os.getpid(),
            **self._current(),
            "ranks": [each._asdict() for each in distributed.standings()],
        }
        # Not by written_aside, which sets the umask for a moment, for all threads.
        aside = self._path.with_name(f".{STATUS}.{os.getpid()}")
        with suppress(OSError):
            aside.write_text(json.dumps(content), encoding="utf-8")
            aside.replace(self._path)
