"""Figures as a table for the terminal."""

from collections.abc import Mapping

from lavis_ext.evaluation.figures import ACCURACY, is_share


def figures_table(by_split: Mapping[str, Mapping[str, float]]) -> str:
    """One row a figure, one column a split; shares in percent."""
    names = list(dict.fromkeys(name for figures in by_split.values() for name in figures))
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"{split:>12}" for split in by_split)]
    for name in names:
        cells = [shown(name, figures.get(name)) for figures in by_split.values()]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def headline(split: str, figures: Mapping[str, float]) -> str:
    """A split's answers against the better baseline, in a sentence; empty without answers."""
    if ACCURACY not in figures or "baseline_form" not in figures:
        return ""
    accuracy, form, overall = (
        100 * figures[name] for name in (ACCURACY, "baseline_form", "baseline_overall")
    )
    better = "form of question" if form >= overall else "whole split"
    gain = accuracy - max(form, overall)
    return (
        f"{split}: {accuracy:.1f} % answered right, {abs(gain):.1f} points "
        f"{'above' if gain >= 0 else 'below'} the most frequent answer to the {better}"
    )


def reasons_list(by_split: Mapping[str, Mapping[str, str]]) -> str:
    """Why figures aren't computed, a line for each reason; empty where all are."""
    figures: dict[tuple[str, str], list[str]] = {}
    for split, reasons in by_split.items():
        for figure, reason in reasons.items():
            figures.setdefault((split, reason), []).append(figure)
    return "\n".join(
        f"not computed on {split}: {', '.join(names)}: {reason}"
        for (split, reason), names in figures.items()
    )


def shown(name: str, value: float | None) -> str:
    """A figure with its unit, for people."""
    if value is None:
        return "-"
    if is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"
