"""Declarations of metrics: name, unit and better direction."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]
LOSS = "loss"
"""Name of the metric that every model has."""


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation reports.

    Attributes:
        name: key in logs, files and ``run.metric``.
        unit: ``share`` (0 to 1, shown in percent), ``percent`` (0 to 100) or the name of a unit;
            empty for a number without a unit. ``points`` are differences of percentages.
        better: ``max`` if higher is better, ``min`` if lower is; None for neither.
    """

    name: str
    unit: str = ""
    better: Direction | None = "max"


def prefixed(prefix: str, metrics: Iterable[Metric]) -> list[Metric]:
    """Copies of the metrics, renamed to ``<prefix>_<name>``."""
    return [Metric(f"{prefix}_{each.name}", each.unit, each.better) for each in metrics]


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Map each metric's name to the metric."""
    return {metric.name: metric for metric in metrics}
