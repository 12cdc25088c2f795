"""Curves of a training run, from the lines of its log."""

import math
from pathlib import Path
from typing import Any

from lavis_ext.common.files import parse_json
from lavis_ext.evaluation.figures import ACCURACY, is_share

MOST_POINTS = 400
MOST_CHARTS = 8
TRAINING = "train"
SKIPPED = "skipped"
"""Lines on steps that weren't finite; they have no figures."""
BASELINE = "baseline, by form"
LEARNING_RATE = "lr"


def read_curves(log: Path) -> list[dict[str, Any]]:
    """Charts of the figures that ``log.jsonl`` has of training; empty without such a log.

    A step that was logged twice, as by a run that was resumed, counts as logged last. Lines that
    aren't whole are left out: a run that was killed may leave one.

    Returns:
        For each figure ``name``, whether it is a ``share``, and ``series`` by kind (``train`` or a
        split): points [step, value], at most ``MOST_POINTS``, means of several where there are
        more.
    """
    by_kind: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in _entries(log):
        by_kind.setdefault(entry["kind"], {})[entry["step"]] = entry
    by_kind.pop(SKIPPED, None)
    training = by_kind.pop(TRAINING, None)
    if not training:
        return []
    # A split that was evaluated once, at the end, has no curve.
    validated = {kind: steps for kind, steps in by_kind.items() if len(steps) > 1}
    names = dict.fromkeys(name for entry in training.values() for name in entry)
    charts = []
    for name in sorted(filter(_worth_a_chart, names), key=_rank)[:MOST_CHARTS]:
        series = {
            kind: _thinned(_points(steps, name))
            for kind, steps in {TRAINING: training, **validated}.items()
        }
        if name == ACCURACY:
            for steps in validated.values():
                series[BASELINE] = _points(steps, "baseline_form")
        charts.append(
            {
                "name": name,
                "share": is_share(name),
                "series": {kind: points for kind, points in series.items() if points},
            }
        )
    return charts


def _entries(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    entries = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("step"), int)
            and isinstance(entry.get("kind"), str)
        ):
            entries.append(entry)
    return entries


def _worth_a_chart(name: str) -> bool:
    return name == LEARNING_RATE or name.endswith(("loss", "_accuracy"))


def _rank(name: str) -> tuple[int, str]:
    """The whole loss and the answers first; parts of an objective's figures after the rest."""
    first = ("loss", ACCURACY)
    if name in first:
        return first.index(name), name
    return 2 + (name == LEARNING_RATE) + 2 * (name.count("_") > 1), name


def _points(steps: dict[int, dict[str, Any]], name: str) -> list[list[float]]:
    return [
        [step, entry[name]]
        for step, entry in sorted(steps.items())
        if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])
    ]


def _thinned(points: list[list[float]]) -> list[list[float]]:
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]
