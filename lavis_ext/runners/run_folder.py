"""A run's own folder, and what has to stand in it for somebody to repeat the run."""

import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.errors import UserError
from lavis_ext.files import write_json, written_aside

PACKAGES = ("torch", "torchvision", "transformers", "timm", "omegaconf", "salesforce-lavis")


def make_run_folder(output_dir: Path, name: str) -> Path:
    """A new folder ``<name>-<date>-<time>`` in ``output_dir``; runs of the same second differ."""
    stamp = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{count}" for count in range(2, 1000))):
            try:
                (output_dir / f"{stamp}{suffix}").mkdir()
            except FileExistsError:
                continue
            return output_dir / f"{stamp}{suffix}"
    except OSError as error:
        raise UserError(
            f"run.output_dir: no folder can be made in {output_dir} ({error.strerror})."
        ) from None
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
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
        },
    )


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
