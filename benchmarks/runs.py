"""Runs of ``train.py`` and ``evaluate.py``, started as by a user and never repeated."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import PROJECT, command, environment
from lavis_ext.evaluation.by_image import BY_IMAGE, ByImage

RECIPES = "projects/pnp-vqa"
WEIGHTS = "fusion_encoder_best.safetensors"
SPLIT = "testdev"

Metrics = dict[str, float]


@dataclass(frozen=True)
class Run:
    """The folder of a finished run."""

    folder: Path

    @property
    def metrics(self) -> Metrics:
        """Metrics on testdev."""
        content = (self.folder / "metrics.json").read_text(encoding="utf-8")
        found: Metrics = json.loads(content)[SPLIT]
        return found

    @property
    def by_image(self) -> ByImage | None:
        """The same by image; None if the task has none."""
        return ByImage.read(self.folder / f"{SPLIT}{BY_IMAGE}")

    @property
    def weights(self) -> list[str]:
        """The option that loads the run's best weights."""
        return [f"model.fusion_weights={self.folder / WEIGHTS}"]


@dataclass(frozen=True)
class Runs:
    """The output folder and common settings of all runs."""

    out: Path
    threads: int = 1
    options: Sequence[str] = field(default_factory=list)

    def train(self, recipe: str, name: str, options: Sequence[str] = ()) -> Run:
        """Train by a recipe in ``projects/pnp-vqa/train``."""
        path = f"{RECIPES}/train/{recipe}.yaml"
        return self.run("train.py", path, self.out / recipe / name, options)

    def evaluate(
        self, recipe: str, where: Path, options: Sequence[str] = (), processes: int = 1
    ) -> Run:
        """Evaluate by a recipe in ``projects/pnp-vqa/eval``."""
        path = f"{RECIPES}/eval/{recipe}.yaml"
        return self.run("evaluate.py", path, where, options, processes)

    def run(
        self,
        program: str,
        recipe: str,
        where: Path,
        options: Sequence[str],
        processes: int = 1,
    ) -> Run:
        """The run in the folder ``where``, started if it isn't finished.

        Raises CalledProcessError if it fails; what it printed is in ``output.txt``.
        """
        if not list(where.glob("*/metrics.json")):
            where.mkdir(parents=True, exist_ok=True)
            arguments = ["--cfg-path", recipe, "--options", f"run.output_dir={where}"]
            with (where / "output.txt").open("w", encoding="utf-8") as output:
                subprocess.run(
                    command([program, *arguments, *options, *self.options], processes),
                    cwd=PROJECT,
                    env=environment(self.threads),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=True,
                )
            print(f"done: {where}", flush=True)
        return Run(next(where.glob("*/metrics.json")).parent)
