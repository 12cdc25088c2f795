"""Metrics as a table for the terminal."""

from collections.abc import Mapping

from lavis_ext.common.metrics import Metric


def metrics_table(
    by_split: Mapping[str, Mapping[str, float]], declared: Mapping[str, Metric]
) -> str:
    """One row a metric, one column a split; shares in percent."""
    names = list(dict.fromkeys(name for metrics in by_split.values() for name in metrics))
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{split:>12}" for split in by_split)]
    for name in names:
        cells = [shown(declared.get(name), metrics.get(name)) for metrics in by_split.values()]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def reasons_list(by_split: Mapping[str, Mapping[str, str]]) -> str:
    """Why metrics aren't computed, a line for each reason; empty where all are."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for split, reasons in by_split.items():
        for metric, reason in reasons.items():
            metrics.setdefault((split, reason), []).append(metric)
    return "\n".join(
        f"not computed on {split}: {', '.join(names)}: {reason}"
        for (split, reason), names in metrics.items()
    )


def shown(metric: Metric | None, value: float | None) -> str:
    """A metric's value with its unit, for people; None for a metric that isn't declared."""
    if value is None:
        return "-"
    unit = "" if metric is None else metric.unit
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "percent":
        return f"{value:.1f} %"
    number = f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"
    return f"{number} {unit}".rstrip()
