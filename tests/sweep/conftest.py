"""A sweep of ``gqa_small.yaml`` with a program that stands in for train.py."""

import json
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lavis_ext.config.loader import Config
from lavis_ext.sweep import processes
from lavis_ext.sweep.__main__ import main
from lavis_ext.sweep.grid import parse_grid, planned_runs
from tests.conftest import SMALL

FAKE = Path(__file__).parent / "fake_train.py"


@dataclass
class Sweep:
    """A sweep's command and folder.

    Attributes:
        path: folder of the sweep.
        output: its parent.
        grid: what follows ``verb``, by default its ``--grid``.
        plan: what the stand-in does.
    """

    output: Path
    grid: Sequence[str]
    verb: str = "--grid"
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.output / "s"

    @property
    def arguments(self) -> list[str]:
        options = ["--options", f"run.output_dir={self.output}", "run.max_epoch=2"]
        return ["--cfg-path", str(SMALL), "--name", "s", self.verb, *self.grid, *options]

    def run(self, *more: str) -> int:
        """Run the command here; returns its exit code."""
        try:
            main([*self.arguments, *more])
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    def plans(self, **plan: Any) -> None:
        """Change what the stand-in does."""
        self.plan |= plan
        Path(os.environ["FAKE_TRAIN"]).write_text(json.dumps(self.plan))

    @property
    def attempts(self) -> list[str]:
        """Names of the runs that were started, in order."""
        path = Path(self.plan["attempts"])
        return path.read_text().split() if path.exists() else []

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "results.json").read_text())
        return found


@pytest.fixture
def sweep_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """``sweep_of("run.init_lr=1e-3,1e-4", ...)`` prepares a sweep of that grid."""
    monkeypatch.setenv("FAKE_TRAIN", str(tmp_path / "plan.json"))
    monkeypatch.setattr(processes, "train_program", lambda: FAKE)

    def make(*grid: str) -> Sweep:
        found = Sweep(tmp_path, grid)
        configs = tmp_path / "configs"
        configs.mkdir()
        options = found.arguments[found.arguments.index("--options") + 1 :]
        for run in planned_runs(parse_grid(grid)):
            arguments = Namespace(cfg_path=str(SMALL), options=[*options, *run.options])
            text = OmegaConf.to_yaml(Config(arguments).config)
            (configs / f"{run.name}.yaml").write_text(text)
        attempts = str(tmp_path / "attempts.txt")
        found.plans(configs=str(configs), attempts=attempts, values={}, fail={}, hold={})
        return found

    return make
