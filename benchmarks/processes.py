"""Run programs in separate processes, so that they share no memory or settings."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def command(program: Sequence[str], processes: int = 1) -> list[str]:
    """Command line that runs ``program`` in one process, or in several by torchrun.

    ``program`` is a file, or ``-m`` and a module, with its arguments. Run it in ``PROJECT``.
    """
    launcher: list[str] = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *launcher, *program]


def environment(threads: int) -> dict[str, str]:
    """Environment variables for a program with ``threads`` threads that imports the project."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(PROJECT)}
