"""Scores as a table for the terminal."""

from collections.abc import Sequence

from lavis_ext.common.errors import shortened
from lavis_ext.evaluation.gqa.outcomes import LOWER_IS_BETTER, METRICS
from lavis_ext.evaluation.gqa.scores import Figure, GqaScores

WIDEST = 100
BREAKDOWN_TITLES = {
    "structural": "accuracy by structural type",
    "semantic": "accuracy by semantic type",
    "detailed": "accuracy by detailed type",
    "steps": "accuracy by reasoning steps",
    "words": "accuracy by words",
}


def scores_table(scores: GqaScores) -> str:
    """All figures: percentages with two decimals, but for the distribution's statistic."""
    with_intervals = any(figure.low is not None for figure in scores.metrics.values())
    header = ("", "", "95 % interval" if with_intervals else "", "questions")
    parts = [
        f"{scores.questions:,} questions about {scores.images:,} images",
        columns([header, *(_row(name, figure) for name, figure in scores.metrics.items())]),
    ]
    for breakdown, figures in scores.breakdowns.items():
        rows = [_row(kind, figure) for kind, figure in figures.items()]
        parts.append(f"{BREAKDOWN_TITLES[breakdown]}\n{columns(rows)}")
    if scores.not_computed:
        reasons = [
            f"  {name}: {scores.not_computed[name]}"
            for name in METRICS
            if name in scores.not_computed
        ]
        parts.append("\n".join(["not computed", *reasons]))
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as text, the first column to the left and all others to the right."""
    rows = [[shortened(cell, WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def shown(name: str, value: float) -> str:
    """A figure with its unit, to two decimals."""
    return f"{value:.2f}" if name in LOWER_IS_BETTER else f"{100 * value:.2f} %"


def shown_difference(name: str, value: float) -> str:
    """The difference of two figures, in percentage points where they are percentages."""
    return f"{value:+.2f}" if name in LOWER_IS_BETTER else f"{100 * value:+.2f}"


def _row(name: str, figure: Figure) -> tuple[str, str, str, str]:
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{shown(name, figure.low)} to {shown(name, figure.high)}"
    title = f"{name} (lower is better)" if name in LOWER_IS_BETTER else name
    return title, shown(name, figure.value), interval, f"{figure.count:,}"
