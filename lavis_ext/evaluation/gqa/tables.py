"""Scores as a table for the terminal."""

from collections.abc import Sequence

from lavis_ext.common.errors import shortened
from lavis_ext.evaluation.gqa.metrics import METRICS
from lavis_ext.evaluation.gqa.scores import GqaScores, Score

WIDEST = 100
BREAKDOWN_TITLES = {
    "structural": "accuracy by structural type",
    "semantic": "accuracy by semantic type",
    "detailed": "accuracy by detailed type",
    "steps": "accuracy by reasoning steps",
    "words": "accuracy by words",
}


def scores_table(scores: GqaScores) -> str:
    """All metrics: percentages with two decimals, but for the distribution's statistic."""
    with_intervals = any(each.low is not None for each in scores.metrics.values())
    header = ("", "", "95 % interval" if with_intervals else "", "questions")
    parts = [
        f"{scores.questions:,} questions about {scores.images:,} images",
        columns([header, *(_row(name, each) for name, each in scores.metrics.items())]),
    ]
    for breakdown, kinds in scores.breakdowns.items():
        rows = [_row(kind, each) for kind, each in kinds.items()]
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
    """The value of a metric, or of accuracy of a kind of question, to two decimals."""
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.2f}"


def shown_difference(name: str, value: float) -> str:
    """The difference of two values, in percentage points where they are shares."""
    return f"{100 * value:+.2f}" if is_share(name) else f"{value:+.2f}"


def is_share(name: str) -> bool:
    """Whether a metric, or accuracy of a kind of question, is a share."""
    return name not in METRICS or METRICS[name].unit == "share"


def _row(name: str, score: Score) -> tuple[str, str, str, str]:
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"{shown(name, score.low)} to {shown(name, score.high)}"
    lower = name in METRICS and METRICS[name].better == "min"
    title = f"{name} (lower is better)" if lower else name
    return title, shown(name, score.value), interval, f"{score.count:,}"
