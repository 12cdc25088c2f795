"""Tables of a run's metrics."""

from collections.abc import Mapping

from lavis_ext.common.metrics import Metric
from lavis_ext.common.tables import Table, table


def metrics_table(
    by_split: Mapping[str, Mapping[str, float]], declared: Mapping[str, Metric]
) -> Table:
    """One row per metric, one column per split; shares in percent."""
    names = list(dict.fromkeys(name for metrics in by_split.values() for name in metrics))
    rows = [
        (name, *(shown(declared.get(name), metrics.get(name)) for metrics in by_split.values()))
        for name in names
    ]
    return table(rows, ("metric", *by_split))


def reasons_list(by_split: Mapping[str, Mapping[str, str]]) -> str:
    """Reasons for missing metrics, one line each; empty if all are computed."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for split, reasons in by_split.items():
        for metric, reason in reasons.items():
            metrics.setdefault((split, reason), []).append(metric)
    return "\n".join(
        f"not computed on {split}: {', '.join(names)}: {reason}"
        for (split, reason), names in metrics.items()
    )


def shown(metric: Metric | None, value: float | None) -> str:
    """Format a metric's value with its unit; ``metric`` is None for undeclared ones."""
    if value is None:
        return "-"
    unit = "" if metric is None else metric.unit
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "percent":
        return f"{value:.1f} %"
    if unit == "points":
        return f"{value:+.1f} points"
    number = f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"
    return f"{number} {unit}".rstrip()


def shown_difference(metric: Metric | None, value: float) -> str:
    """Format a signed difference of two values, of shares in percentage points."""
    unit = "" if metric is None else metric.unit
    if unit == "share":
        return f"{100 * value:+.1f}"
    return f"{value:+.1f}" if unit == "percent" else f"{value:+.4f}"
