"""A run's folder, and the record of config, versions and revision that reproduces the run."""

import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import write_json, written_aside

PACKAGES = ("torch", "torchvision", "transformers", "timm", "omegaconf", "salesforce-lavis")
CONFIG = "config.yaml"
LINES = "log.jsonl"
LOCK = "run.lock"
"""Lock file, held while a run's process lives."""
METRICS = "metrics.json"
"""Metrics file; only finished runs have it."""
STATUS = "status.json"
"""Where the run is, or how it ended."""
RUNNING, STOPPED, FAILED, FINISHED = "running", "stopped", "failed", "finished"
"""States in ``STATUS``."""


def default_name(stem: str, when: float) -> str:
    """Name of a run's folder, ``<stem>-<date>-<time>``, by the time of its start."""
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(when))}"


def make_run_folder(output_dir: Path, stem: str, name: str | None, when: float) -> Path:
    """Create the folder ``name`` in ``output_dir``, by default ``default_name(stem, when)``.

    Unnamed runs of the same second get different names. Raises UserError if ``name`` exists.
    """
    stamp = name or default_name(stem, when)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for suffix in [""] if name else ["", *(f"-{count}" for count in range(2, 1000))]:
            try:
                (output_dir / f"{stamp}{suffix}").mkdir()
            except FileExistsError:
                continue
            return output_dir / f"{stamp}{suffix}"
    except OSError as error:
        raise UserError(
            f"run.output_dir: can't create a folder in {output_dir} ({error.strerror})."
        ) from None
    if name:
        raise UserError(
            f"run.name: {output_dir / name} already exists. Continue that run with "
            "run.resume=auto, or choose another name."
        )
    raise UserError(f"run.output_dir: {output_dir} has a thousand runs from this second.")


def describe_run(folder: Path, config: Any) -> None:
    """Write the run's resolved config, program, versions and git revision."""
    with written_aside(folder / CONFIG) as path:
        path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    write_json(
        folder / "environment.json",
        {
            "command": sys.argv,
            "git_revision": git_revision(),
            **versions(),
        },
    )


def versions() -> dict[str, Any]:
    """Versions of Python and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def git_revision() -> str | None:
    """Git revision of the code, with ``-dirty`` for uncommitted changes; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
