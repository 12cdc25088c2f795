"""Programs started as users start them."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def torchrun_command(processes: int, *arguments: str) -> list[str]:
    """Python's arguments for torchrun's, a program and its own among them."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, "-m", *launcher, *arguments]


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What torchrun leaves of a program with these arguments, in the project's folder."""
    return subprocess.run(
        torchrun_command(processes, *arguments),
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
