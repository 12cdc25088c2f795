"""Programs started as users start them, and waiting for what they do."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lavis_ext.runners.run_log import log

PROJECT = Path(__file__).parents[1]
PATIENCE = 600.0
"""Seconds until a test gives up; pytest's own limit is 900."""


class Killed(BaseException):
    """Ends a run in this process without it being able to react."""


def wait_until(condition: Callable[[], object], message: Callable[[], str] = lambda: "") -> None:
    """Wait for an event in another process or thread, however slow the machine is."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it never happened. {message()}"
        time.sleep(0.01)


def signal_this_run(signum: int) -> None:
    """Send this process a signal and return once its run has noted it."""
    noted = threading.Event()
    handler = logging.Handler()
    handler.emit = (  # type: ignore[method-assign]
        lambda record: noted.set() if "stopping after" in record.getMessage() else None
    )
    log.addHandler(handler)
    os.kill(os.getpid(), signum)
    assert noted.wait(PATIENCE)
    log.removeHandler(handler)


def torchrun_command(processes: int, *arguments: str) -> list[str]:
    """Python's arguments for torchrun's, a program and its own among them."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, "-m", *launcher, *arguments]


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What torchrun leaves of a program with these arguments, in the project's folder."""
    return subprocess.run(
        torchrun_command(processes, *arguments),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
