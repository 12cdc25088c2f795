"""Curves of a training run from its log."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.common.files import parse_json
from lavis_ext.common.metrics import LOSS, Metric

MOST_POINTS = 400
MOST_CHARTS = 8
TRAINING = "train"
WITHOUT_METRICS = ("skipped", "left_out")
"""Kinds of lines about non-finite steps and unreadable images."""
DECLARED = "declared"
"""Kind of the line with each metric's name, unit and direction, ``[[name, unit, better], ...]``."""
LEARNING_RATE = "lr"
PACE = {
    *("time", "kind", "step", "epoch", "skipped_steps", "waiting_for_data"),
    *("examples_per_second", "questions_per_second"),
}
"""Keys of training lines that aren't metrics."""


def read_curves(
    log: Path,
    declared: Mapping[str, Metric] | None = None,
    *,
    metric: str = "",
    overlays: Mapping[str, Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Charts of a training log's metrics; empty without a log.

    For a step that was logged twice, as in resumed runs, the last line counts. Incomplete lines, as
    of killed runs, are left out.

    Args:
        log: path of ``log.jsonl``. Its declared metrics are drawn, or all if it declares none.
        declared: units of metrics that the log doesn't declare.
        metric: metric whose chart follows the loss.
        overlays: by metric, labels of other evaluation metrics drawn in its chart.

    Returns:
        For each metric ``name`` and ``unit``, ``series`` by label (``train``, a split or one of
        ``overlays``, which ``overlaid`` lists): points [step, value], at most ``MOST_POINTS``,
        means of several where there are more.
    """
    by_kind: dict[str, dict[int, dict[str, Any]]] = {}
    own: dict[str, Metric] = {}
    lines: Counter[str] = Counter()
    for entry in _entries(log):
        lines[entry["kind"]] += 1
        if entry["kind"] == DECLARED:
            own = _declared(entry)
        else:
            by_kind.setdefault(entry["kind"], {})[entry["step"]] = entry
    for kind in WITHOUT_METRICS:
        by_kind.pop(kind, None)
    training = by_kind.pop(TRAINING, None)
    if not training:
        return []
    known = {**(declared or {}), **own}
    # A split that was only evaluated at the end has no curve, unless there is no other.
    several = {kind: steps for kind, steps in by_kind.items() if lines[kind] > 1}
    validated = several or by_kind
    logged = dict.fromkeys(name for entry in training.values() for name in entry)
    if any(metric in entry for steps in validated.values() for entry in steps.values()):
        logged[metric] = None  # it may be computed in validations alone
    names = [name for name in logged if name in (*own, LEARNING_RATE) or not (own or name in PACE)]
    charts = []
    for name in sorted(names, key=lambda each: _rank(each, metric))[:MOST_CHARTS]:
        series = {
            kind: _thinned(_points(steps, name))
            for kind, steps in {TRAINING: training, **validated}.items()
        }
        overlaid = (overlays or {}).get(name, {})
        for other, label in overlaid.items():
            for steps in validated.values():
                series[label] = _points(steps, other)
        series = {label: points for label, points in series.items() if points}
        if series:
            charts.append(
                {
                    "name": name,
                    "unit": known[name].unit if name in known else "",
                    "series": series,
                    "overlaid": list(overlaid.values()),
                }
            )
    return charts


def declared_metrics(log: Path) -> dict[str, Metric]:
    """Metrics that a training log declares, by name; empty without a log."""
    own: dict[str, Metric] = {}
    for entry in _entries(log):
        if entry["kind"] == DECLARED:
            own = _declared(entry)
    return own


def _declared(entry: Mapping[str, Any]) -> dict[str, Metric]:
    found = {}
    listed = entry.get("metrics")
    for each in listed if isinstance(listed, list) else []:
        match each:
            case [str(name), str(unit), "max" | "min" | None as better]:
                found[name] = Metric(name, unit, better)
    return found


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


def _rank(name: str, metric: str) -> tuple[int, str]:
    """Sort key: total loss and selecting metric first, objectives' detailed metrics last."""
    first = (LOSS, metric)
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
