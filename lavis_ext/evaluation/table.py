"""Figures as a table for the terminal."""

from collections.abc import Mapping

PERCENTAGES = ("accuracy", "baseline")


def figures_table(by_split: Mapping[str, Mapping[str, float]]) -> str:
    """One row a figure, one column a split; accuracies in percent."""
    names = list(dict.fromkeys(name for figures in by_split.values() for name in figures))
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{split:>12}" for split in by_split)]
    for name in names:
        cells = [_cell(name, figures.get(name)) for figures in by_split.values()]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if any(part in name for part in PERCENTAGES):
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"
