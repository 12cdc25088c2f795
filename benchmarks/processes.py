"""Programs in processes of their own, so that what one holds or has set is no other's."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def command(program: Sequence[str], processes: int = 1) -> list[str]:
    """Python's arguments to run ``program``, in as many processes that train together.

    ``program`` is a file, or ``-m`` and a module, with its arguments. Run it in ``PROJECT``.
    """
    launcher: list[str] = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *launcher, *program]


def environment(threads: int) -> dict[str, str]:
    """This process's environment, for a program of so many threads that finds the project."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(PROJECT)}
