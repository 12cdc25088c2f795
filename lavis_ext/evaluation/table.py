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


def headline(split: str, figures: Mapping[str, float]) -> str:
    """A split's answers against the better baseline, in a sentence; empty without answers."""
    if "answer_accuracy" not in figures or "baseline_form" not in figures:
        return ""
    accuracy, form, overall = (
        100 * figures[name] for name in ("answer_accuracy", "baseline_form", "baseline_overall")
    )
    better = "form of question" if form >= overall else "whole split"
    gain = accuracy - max(form, overall)
    return (
        f"{split}: {accuracy:.1f} % answered right, {abs(gain):.1f} points "
        f"{'above' if gain >= 0 else 'below'} the most frequent answer to the {better}"
    )


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if any(part in name for part in PERCENTAGES):
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"
