"""What a sweep's runs have reached: by run, and by choice over its seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.files import read_object
from lavis_ext.common.metrics import Metric
from lavis_ext.config.loader import load_yaml
from lavis_ext.datasets.mixed import split_of
from lavis_ext.evaluation.by_image import BY_IMAGE, ByImage
from lavis_ext.evaluation.report.curves import declared_metrics
from lavis_ext.runners.run_folder import CONFIG, LINES, METRICS
from lavis_ext.sweep.differences import Difference, Repetition, paired_difference
from lavis_ext.sweep.folder import Status, SweepFolder
from lavis_ext.sweep.grid import SEED, PlannedRun, choices_of


@dataclass(frozen=True)
class RunResult:
    """A run and what became of it.

    Attributes:
        run: the run.
        status: its status.
        error: last error of a failed run.
        value: the metric's value; None for unfinished runs, and for those without the metric or
            with one that isn't finite.
    """

    run: PlannedRun
    status: Status
    error: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Choice:
    """Runs that differ in the seed alone.

    Attributes:
        values: text of each key's value, without the seed.
        runs: its runs.
        difference: difference from the first choice; None for that one, and if no seed is shared.
        blind: the metric of a question-only answerer, mean over the runs that have it; None if
            none has.
        above_blind: paired difference from it over these runs.
    """

    values: Mapping[str, str]
    runs: Sequence[RunResult]
    difference: Difference | None = None
    blind: float | None = None
    above_blind: Difference | None = None

    @property
    def reached(self) -> list[float]:
        """Values of its finished runs."""
        return [run.value for run in self.runs if run.value is not None]

    @property
    def mean(self) -> float | None:
        """Mean over its finished runs; None without any."""
        return mean(self.reached) if self.reached else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over its finished runs; None for fewer than two."""
        return stdev(self.reached) if len(self.reached) > 1 else None


@dataclass(frozen=True)
class Results:
    """Results of a sweep.

    Attributes:
        title: name of the sweep.
        config: path of the runs' config.
        keys: keys in which the choices differ.
        metric: the compared metric.
        split: the split that it is measured on; empty as long as no run has finished.
        choices: in the grid's order, or a search's trials, the best first.
        is_search: whether the choices are a search's trials, which aren't compared with the first.
    """

    title: str
    config: str
    keys: Sequence[str]
    metric: Metric
    split: str
    choices: Sequence[Choice]
    is_search: bool = False

    @property
    def runs(self) -> list[RunResult]:
        """All runs, in the choices' order."""
        return [run for choice in self.choices for run in choice.runs]

    def with_status(self, status: Status) -> list[RunResult]:
        """Runs with a status."""
        return [run for run in self.runs if run.status is status]


@dataclass(frozen=True)
class Measure:
    """The compared metric and its split, by default those that select the runs' best weights.

    Attributes:
        metric, split: names; None for the default.
    """

    metric: str | None = None
    split: str | None = None

    def settled_by(self, folder: Path) -> tuple[Metric, str]:
        """The metric and split by those of a finished run.

        Raises UserError if the run has no such split or metric.
        """
        metrics = _metrics_of(folder)
        config: Any = OmegaConf.to_container(load_yaml(folder / CONFIG))
        section = config.get("run")
        if not isinstance(section, dict) or not (self.metric or section.get("metric")):
            raise UserError(
                f"{folder / CONFIG} isn't the config of a finished run: it has no run.metric. "
                "Remove that folder to repeat the run."
            )
        if not metrics:
            raise UserError(
                f"{folder} has no final metrics to compare; set run.valid_splits or "
                "run.test_splits, and remove that folder to repeat the run."
            )
        split = self.split or _selecting(metrics, section)
        if split not in metrics:
            raise UserError(
                f"--split is '{split}', but {folder} has: {', '.join(metrics) or 'none'}."
                f"{nearest(split, metrics)}"
            )
        name = self.metric or section["metric"]
        if self.metric is not None and name not in metrics[split]:
            raise UserError(
                f"--metric is '{name}', but {folder} has on {split}: "
                f"{', '.join(metrics[split])}.{nearest(name, metrics[split])}"
            )
        declared = declared_metrics(folder / LINES).get(name) or Metric(name, better=None)
        goal = section.get("metric_goal") if self.metric is None else None
        return Metric(name, declared.unit, goal or declared.better), split


def collect(
    folder: SweepFolder, config: str, runs: Sequence[PlannedRun], measure: Measure
) -> Results:
    """Results of a grid's runs. Raises UserError for a metric or split that they lack."""
    measured, settled = _measured(folder, runs, measure)
    choices: list[Choice] = []
    first: dict[str, Repetition] | None = None
    for values, of in choices_of(runs):
        results = [measured[run.name] for run in of]
        repetitions = {
            result.run.values.get(SEED, ""): _repetition(folder, result, settled)
            for result in results
            if result.value is not None
        }
        difference = None
        if first is not None:
            difference = paired_difference(first, repetitions, settled[0].name)
        else:
            first = repetitions
        choices.append(Choice(values, results, difference, *_beside_blind(repetitions, settled)))
    keys = [key for key in runs[0].values if key != SEED]
    return Results(folder.path.name, config, keys, *settled, choices)


def collect_trials(
    folder: SweepFolder, config: str, runs: Sequence[PlannedRun], measure: Measure
) -> Results:
    """Results of a search's trials, the best first, then those without a value."""
    measured, settled = _measured(folder, runs, measure)
    sign = -1 if settled[0].better == "max" else 1
    ordered = sorted(
        measured.values(), key=lambda each: (each.value is None, sign * (each.value or 0))
    )
    choices = [Choice(result.run.values, [result]) for result in ordered]
    keys = list(runs[0].values) if runs else []
    return Results(folder.path.name, config, keys, *settled, choices, is_search=True)


def _measured(
    folder: SweepFolder, runs: Sequence[PlannedRun], measure: Measure
) -> tuple[dict[str, RunResult], tuple[Metric, str]]:
    """Results by run's name, with the metric and split of the first finished run."""
    statuses = {run.name: folder.status(run.name) for run in runs}
    finished = [name for name, (status, _) in statuses.items() if status is Status.FINISHED]
    metric, split = Metric(measure.metric or ""), measure.split or ""
    if finished:
        metric, split = measure.settled_by(folder.runs / finished[0])
    found = {}
    for run in runs:
        value = None
        if run.name in finished:
            value = _finite(_metrics_of(folder.runs / run.name).get(split, {}).get(metric.name))
        found[run.name] = RunResult(run, *statuses[run.name], value)
    return found, (metric, split)


def _metrics_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Metrics of a finished run by split. Raises UserError for a damaged file."""
    found = read_object(folder / METRICS)
    if found is None or not all(isinstance(metrics, dict) for metrics in found.values()):
        raise UserError(
            f"{folder / METRICS} is damaged: it has no metrics by split. Remove that folder to "
            "repeat the run."
        )
    return found


def _finite(value: Any) -> float | None:
    """A metric's value; None for NaN, as of a run that diverged, and for what is no number."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _repetition(folder: SweepFolder, result: RunResult, settled: tuple[Metric, str]) -> Repetition:
    assert result.value is not None
    path = folder.runs / result.run.name / f"{settled[1]}{BY_IMAGE}"
    return Repetition(result.value, ByImage.read(path))


def _beside_blind(
    repetitions: Mapping[str, Repetition], settled: tuple[Metric, str]
) -> tuple[float | None, Difference | None]:
    """The metric of the question-only answerer, and the runs' difference from it."""
    name = settled[0].name
    blind = {
        seed: Repetition(of.mean(name), of)
        for seed, run in repetitions.items()
        if run.by_image and (of := run.by_image.blind) and name in of.sums
    }
    if not blind:
        return None, None
    value = mean(each.value for each in blind.values())
    return value, paired_difference(blind, repetitions, name)


def _selecting(metrics: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    """The split that selects the best weights; without one, the first."""
    wanted = section.get("valid_splits") or []
    return next((name for name in metrics if split_of(name) in wanted), next(iter(metrics), ""))
