"""Forks of loader workers: when they are safe, and where a worker is that brings nothing.

A forked process inherits the locks that other threads hold at that moment, without the threads that
would release them. Python before 3.11.10 can hang so, before it runs any code of the child (CPython
gh-112275): a native thread that needs the interpreter locks the list of threads, as gloo's do when
they drop the tensors of a collective, just after the main thread has gone on.
"""

import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

IDLE_SECONDS = 2.0
"""Longest time to wait for idle threads. GPU libraries may have threads that always run."""
LOOK_SECONDS = 0.002
LOOKS = 2
"""Consecutive looks that must find no running thread."""
STACK_SECONDS = 2.0
"""Longest time to wait for a process's stack."""
STACK_SIGNAL = signal.SIGUSR2
STACK_LINES = 30
WORKING = "Current thread"
"""How faulthandler begins the stack of the thread that got the signal, which is the main thread."""


def wait_for_idle_threads() -> bool:
    """Wait until no other thread of this process runs, so that none holds a lock at a fork.

    True if they became idle within ``IDLE_SECONDS``, or on a system that doesn't tell.
    """
    deadline = time.monotonic() + IDLE_SECONDS
    idle = 0
    while time.monotonic() < deadline:
        idle = 0 if _threads_run() else idle + 1
        if idle == LOOKS:
            return True
        time.sleep(LOOK_SECONDS)  # releases the interpreter to threads that wait for it
    return False


def _threads_run() -> bool:
    own = str(threading.get_native_id())
    return any(
        _state(thread) in ("R", "D")
        for thread in Path("/proc/self/task").glob("*")
        if thread.name != own
    )


def is_asleep(pid: int) -> bool:
    """Whether all threads of a process wait for something other than a disk; False if unknown."""
    states = [_state(thread) for thread in Path(f"/proc/{pid}/task").glob("*")]
    return bool(states) and all(state == "S" for state in states)


def _state(process: Path) -> str:
    """One letter, as in ``ps``; empty for a process that has ended or an unknown one."""
    try:
        stat = (process / "stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]  # the name before it may contain anything


class Stacks:
    """Python stacks of forked processes, on request and even if they hang.

    Processes forked within ``inherited`` write their stacks to a common file on a signal.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        with suppress(OSError):  # a full disk
            self._file = tempfile.TemporaryFile()  # noqa: SIM115

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Context manager in which to fork. This process's own handling of the signal returns."""
        if self._file is None:
            yield
            return
        faulthandler.register(STACK_SIGNAL, self._file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(STACK_SIGNAL)

    def text(self, pids: Collection[int]) -> str:
        """State and stack of each process, innermost frame first.

        The processes must have been forked within ``inherited``; the signal would end others.
        """
        return "\n".join(self._of(pid) for pid in pids)

    def _of(self, pid: int) -> str:
        state = _state(Path(f"/proc/{pid}"))
        head = f"process {pid}" + (f" (state {state})" if state else "")
        if self._file is None or state in ("", "Z"):
            return f"{head}: no stack"
        start = self._size()
        with suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
        deadline = time.monotonic() + STACK_SECONDS
        size = start
        while time.monotonic() < deadline and (size == start or size != self._size()):
            size = self._size()
            time.sleep(0.05)
        found = os.pread(self._file.fileno(), size - start, start).decode(errors="replace")
        # The thread that works comes last, after those that wait for it.
        threads = sorted(found.split("\n\n"), key=lambda text: not text.startswith(WORKING))
        lines = [line for text in threads for line in text.splitlines()][:STACK_LINES]
        return "\n".join([f"{head}:", *lines]) if lines else f"{head}: no stack, it doesn't react"

    def _size(self) -> int:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size
