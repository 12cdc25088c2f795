"""Tables of GQA's scores."""

from lavis_ext.common.tables import Table, facts, table
from lavis_ext.evaluation.bootstrap import Score
from lavis_ext.evaluation.gqa.metrics import METRICS, notes
from lavis_ext.evaluation.gqa.scores import GqaScores

BREAKDOWN_TITLES = {
    "structural": "accuracy by structural type",
    "semantic": "accuracy by semantic type",
    "detailed": "accuracy by detailed type",
    "steps": "accuracy by reasoning steps",
    "words": "accuracy by words",
}


def scores_tables(scores: GqaScores) -> list[Table | str]:
    """Tables of all metrics; shares are percentages with two decimals."""
    with_intervals = any(each.low is not None for each in scores.metrics.values())
    header = ("metric", "", "95 % interval" if with_intervals else "", "questions")
    parts: list[Table | str] = [
        f"{scores.questions:,} questions about {scores.images:,} images",
        table([_row(name, each) for name, each in scores.metrics.items()], header),
    ]
    parts += notes(scores)
    for breakdown, kinds in scores.breakdowns.items():
        rows = [_row(kind, each) for kind, each in kinds.items()]
        parts.append(table(rows, (BREAKDOWN_TITLES[breakdown], *header[1:])))
    if scores.not_computed:
        reasons = [(n, scores.not_computed[n]) for n in METRICS if n in scores.not_computed]
        parts.append(facts(reasons, header=("not computed", "reason")))
    return parts


def shown(name: str, value: float) -> str:
    """Format a metric, or a kind of question's accuracy, with two decimals."""
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.2f}"


def shown_difference(name: str, value: float) -> str:
    """Format a difference, of shares in percentage points."""
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
