"""Programs started as users start them."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What torchrun leaves of a program with these arguments, in the project's folder."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
