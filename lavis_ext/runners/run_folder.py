"""A run's own folder, and what has to stand in it for somebody to repeat the run."""

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
LINES = "log.jsonl"
LOCK = "run.lock"
"""Held while a run's process lives."""
METRICS = "metrics.json"
"""What a run that has ended leaves, and no other."""


def make_run_folder(output_dir: Path, stem: str, name: str | None) -> Path:
    """A new folder ``name`` in ``output_dir``; without a name ``<stem>-<date>-<time>``.

    Unnamed runs of the same second differ. Raises UserError for a name that is taken.
    """
    stamp = name or f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
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
            f"run.output_dir: no folder can be made in {output_dir} ({error.strerror})."
        ) from None
    if name:
        raise UserError(
            f"run.name: {output_dir / name} is there already. Go on with that run by "
            "run.resume=auto, or choose another name."
        )
    raise UserError(f"run.output_dir: {output_dir} has a thousand runs of this second.")


def describe_run(folder: Path, config: Any) -> None:
    """Write the resolved config, and the program, versions and git revision of the run."""
    with written_aside(folder / "config.yaml") as path:
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
    """Of Python and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def git_revision() -> str | None:
    """The revision of the code, with ``-dirty`` if files differ from it; None outside of git."""
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
