"""Turn SIGTERM, SIGINT and SIGHUP into a request to stop at a resumable step."""

import os
import signal
import socket
import threading
import time
from typing import Self

from lavis_ext import distributed
from lavis_ext.runners.run_log import log

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ECHO_SECONDS = 0.2
"""Period in which a terminal's signal may arrive again through a newly started loader worker."""
TORCHRUN_ECHO_SECONDS = 3.0
"""Period in which torchrun may forward a signal that the process has already received."""


class StopRequested(Exception):
    """Raised in every process once all agree to stop; ``signum`` is the received signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Context manager that records the first of ``SIGNALS`` instead of ending the process.

    A closed terminal sends SIGHUP; where it is ignored already (``nohup``), it stays so. A second
    signal ends the process immediately with code 128 plus the signal's number. A separate thread
    handles it, because the main thread may be blocked.

    Attributes:
        received: number of the first signal; 0 before it.
    """

    def __init__(self) -> None:
        self.received = 0
        self.watching = False
        elastic = "TORCHELASTIC_RUN_ID" in os.environ
        self._echo = TORCHRUN_ECHO_SECONDS if elastic else ECHO_SECONDS

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = {
            signum: signal.signal(signum, _ignore)
            for signum in SIGNALS
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN
        }
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._reader,), daemon=True).start()
        self.watching = True
        return self

    def __exit__(self, *_: object) -> None:
        self.watching = False
        signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._writer.close()

    def _watch(self, reader: socket.socket) -> None:
        first = 0.0
        with reader:
            while signums := reader.recv(64):
                for signum in signums:
                    if signum not in SIGNALS or distributed.is_broken():
                        continue  # a failing job ends by itself; this is torchrun's signal
                    if not self.received:
                        first = time.monotonic()
                        self.received = signum
                        log.info(
                            "%s: stopping after this step and saving the state; a second signal "
                            "ends the run immediately",
                            signal.Signals(signum).name,
                        )
                    elif time.monotonic() - first >= self._echo:
                        os._exit(128 + signum)


def _ignore(signum: int, frame: object) -> None:
    """Suppress the default action; the wakeup socket passes the number to the thread."""
