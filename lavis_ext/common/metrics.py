"""What a metric is, declared by whoever computes it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation reports.

    Attributes:
        name: its key in logs, files and ``run.metric``.
        unit: ``share`` (0 to 1, shown in percent), ``percent`` (0 to 100) or the unit's own name;
            empty for a number without one.
        better: whether more (``max``) or less (``min``) of it is better; None where neither is.
    """

    name: str
    unit: str = ""
    better: Direction | None = "max"


def prefixed(prefix: str, metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics under names that begin with ``prefix`` and an underscore."""
    return [Metric(f"{prefix}_{each.name}", each.unit, each.better) for each in metrics]


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """The metrics by name."""
    return {metric.name: metric for metric in metrics}
