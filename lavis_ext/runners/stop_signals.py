"""SIGTERM and SIGINT as a request to stop where a run can go on later."""

import os
import signal
import socket
import threading
import time
from typing import Self

from lavis_ext import distributed
from lavis_ext.runners.run_log import log

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 0.2
"""A terminal's signal may come by way of a loader worker that has just been started as well."""
TORCHRUN_ECHO_SECONDS = 3.0
"""torchrun passes on a signal that the system may have sent to the whole job already."""


class StopRequested(Exception):
    """All processes have agreed to stop. ``signum`` is the signal that one of them was sent."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Within its block, the first SIGTERM or SIGINT is kept for somebody to look at.

    A second one ends the process at once, with code 128 and the signal's number. A thread of its
    own sees to that: the main one may be waiting for something that never comes.

    Attributes:
        received: the first signal's number; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self.watching = False
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        self._echo = TORCHRUN_ECHO_SECONDS if elastic else ECHO_SECONDS

    def __enter__(self) -> Self:
        self._told, self._tells = socket.socketpair()
        self._tells.setblocking(False)
        self._before = {signum: signal.signal(signum, _not_at_once) for signum in SIGNALS}
        self._wakeup_before = signal.set_wakeup_fd(self._tells.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._told,), daemon=True).start()
        self.watching = True
        return self

    def __exit__(self, *_: object) -> None:
        self.watching = False
        signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._tells.close()

    def _watch(self, told: socket.socket) -> None:
        first = 0.0
        with told:
            while signums := told.recv(64):
                for signum in signums:
                    if signum not in SIGNALS or distributed.is_broken():
                        continue  # a job that can't go on ends by itself; torchrun signals that
                    if not self.received:
                        first = time.monotonic()
                        self.received = signum
                        log.info(
                            "%s: the run stops after this step and keeps its state; a second "
                            "signal ends it at once",
                            signal.Signals(signum).name,
                        )
                    elif time.monotonic() - first >= self._echo:
                        os._exit(128 + signum)


def _not_at_once(signum: int, frame: object) -> None:
    """In place of the default action; the number reaches the thread by the wakeup socket."""
