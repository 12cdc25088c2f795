"""The documentation site builds without a broken link or reference, as in ``make docs``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]


def test_the_strict_build_passes(tmp_path: Path) -> None:
    for tool in ("mkdocs", "mkdocs_jupyter"):
        pytest.importorskip(tool, reason="the docs tools are not installed (make setup)")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    keys = (tmp_path / "reference" / "config.html").read_text(encoding="utf-8")
    assert "run.max_epoch" in keys
