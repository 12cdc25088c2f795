"""Starts a run's command, and stops it when the sweep is gone.

It runs as a process of its own, by its path and without this package, so that it is there within
milliseconds. A killed sweep can't stop its runs; they would go on and write to its folder.
"""

import os
import signal
import subprocess
import sys
import threading

started: list["subprocess.Popen[bytes]"] = []
signaled = threading.Event()


def main() -> None:
    """Run ``argv[3:]`` until it ends, and exit with its code, 128 + N for signal N.

    SIGTERM is passed on. The end of the pipe with descriptor ``argv[2]``, whose writing side only
    the sweep has, counts as SIGTERM too, unless there was one: a second one would end a run before
    it has saved its state.
    """
    signal.signal(signal.SIGTERM, _stop)
    started.append(subprocess.Popen(sys.argv[3:]))
    if signaled.is_set():
        started[0].terminate()
    threading.Thread(target=_follow, args=(int(sys.argv[2]),), daemon=True).start()
    code = started[0].wait()
    sys.exit(code if code >= 0 else 128 - code)


def _stop(signum: int, frame: object) -> None:
    signaled.set()
    for process in started:
        process.terminate()


def _follow(pipe: int) -> None:
    os.read(pipe, 1)
    if not signaled.is_set():
        started[0].terminate()
