"""``python -m lavis_ext.evaluation.compare A B --questions F [--choices F] [--consistency] ...``.

Compares two files of predictions for the same questions, by metric and kind of question. The
questions are those asked in both.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import command
from lavis_ext.common.files import write_json
from lavis_ext.common.logs import log_to_stderr
from lavis_ext.common.tables import Table, show, table
from lavis_ext.evaluation.bootstrap import RESAMPLES, percentile_interval
from lavis_ext.evaluation.gqa.inputs import answered, read_outcomes, read_reference
from lavis_ext.evaluation.gqa.metrics import METRICS
from lavis_ext.evaluation.gqa.options import (
    ATTENTIONS_HELP,
    add_grounding_options,
    add_question_options,
    check_options,
)
from lavis_ext.evaluation.gqa.outcomes import Outcomes
from lavis_ext.evaluation.gqa.scores import OVERALL, Name, resample
from lavis_ext.evaluation.gqa.tables import BREAKDOWN_TITLES, shown, shown_difference

CHANGES = ("gained", "lost", "otherwise wrong")
"""Wrong in A and right in B, the reverse, and wrong in both but not with the same answer."""
TYPES = ("structural", "semantic", "detailed")
CHANGES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of A and B, and B minus A with its interval, None if not requested."""

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """A question answered differently by A and B. ``change`` is one of ``CHANGES``."""

    id: str
    image_id: str
    structural: str | None
    semantic: str | None
    detailed: str | None
    answer: str
    a: str
    b: str
    change: str


@dataclass(frozen=True)
class Comparison:
    """Differences of B from A.

    Attributes:
        questions: number of compared questions.
        metrics: metrics of both, by name.
        breakdowns: accuracy by kind of question.
        changes: questions answered differently, in order.
    """

    questions: int
    metrics: Mapping[str, Difference]
    breakdowns: Mapping[str, Mapping[str, Difference]]
    changes: Sequence[Change]


def compare(a: Outcomes, b: Outcomes, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compare two outcomes of the same questions.

    Intervals are of paired differences: each of ``resamples`` draws the same images for both
    (95 %, see ``bootstrap``).
    """
    one, other = (resample(outcomes, resamples, seed) for outcomes in (a, b))
    differences: dict[Name, Difference] = {}
    for name, score in one.scores.items():
        if name not in other.scores:
            continue
        low, high = None, None
        if resamples:
            low, high = percentile_interval(other.samples[name] - one.samples[name])
        value = other.scores[name].value
        differences[name] = Difference(score.value, value, value - score.value, low, high)
    breakdowns: dict[str, dict[str, Difference]] = {}
    for (part, kind), difference in differences.items():
        if part != OVERALL:
            breakdowns.setdefault(part, {})[kind] = difference
    return Comparison(
        questions=len(a.questions),
        metrics={m: differences[OVERALL, m] for m in METRICS if (OVERALL, m) in differences},
        breakdowns=breakdowns,
        changes=changes(a, b),
    )


def changes(a: Outcomes, b: Outcomes) -> list[Change]:
    """Questions answered differently."""
    return [
        Change(
            id=question.id,
            image_id=question.image_id,
            structural=question.structural,
            semantic=question.semantic,
            detailed=question.detailed,
            answer=question.answer,
            a=one,
            b=other,
            change=CHANGES[0 if other == question.answer else 1 if one == question.answer else 2],
        )
        for question, one, other in zip(a.questions, a.predictions, b.predictions, strict=True)
        if one != other
    ]


def comparison_tables(comparison: Comparison) -> list[Table | str]:
    """Metrics with their differences, the changes by type, and the first of them."""
    metrics = [_row(name, difference) for name, difference in comparison.metrics.items()]
    header = ("metric", "A", "B", "B - A, points", "95 % interval")
    parts: list[Table | str] = [
        f"{comparison.questions:,} questions, {len(comparison.changes):,} answered differently",
        table(metrics, header),
    ]
    for breakdown, differences in comparison.breakdowns.items():
        rows = [_row(kind, difference) for kind, difference in differences.items()]
        parts.append(table(rows, (BREAKDOWN_TITLES[breakdown], *header[1:])))
    if comparison.changes:
        parts += [_changes_table(comparison.changes), _first_changes(comparison.changes)]
        left_out = len(comparison.changes) - CHANGES_SHOWN
        if left_out > 0:
            parts.append(f"and {left_out:,} more; --json has them all")
    return parts


def _row(name: str, difference: Difference) -> tuple[str, ...]:
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f"{shown_difference(name, difference.low)} to "
        interval += shown_difference(name, difference.high)
    return (
        name,
        shown(name, difference.a),
        shown(name, difference.b),
        shown_difference(name, difference.difference),
        interval,
    )


def _changes_table(changed: Sequence[Change]) -> Table:
    totals = Counter(change.change for change in changed)
    rows = [("all", *(f"{totals[kind]:,}" for kind in CHANGES))]
    for part in TYPES:
        counts = Counter((getattr(change, part), change.change) for change in changed)
        for name in sorted({name for name, _ in counts if name is not None}):
            numbers = (f"{counts[name, kind]:,}" for kind in CHANGES)
            rows.append((f"{part} {name}", *numbers))
    return table(rows, ("answered differently", *CHANGES))


def _first_changes(changed: Sequence[Change]) -> Table:
    rows = [(each.id, each.change, each.answer, each.a, each.b) for each in changed[:CHANGES_SHOWN]]
    return table(rows, ("question", "change", "answer", "A", "B"))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compare two files of predictions."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.compare",
        description="Compare two files of predictions for the same GQA questions.",
    )
    for name in ("A", "B"):
        parser.add_argument(
            name, type=path_argument, help='a list of {"questionId": ..., "prediction": ...}'
        )
    parser.add_argument(
        "--attentions",
        type=path_argument,
        nargs=2,
        metavar=("A", "B"),
        help=f"of each, a {ATTENTIONS_HELP}",
    )
    add_grounding_options(parser)
    add_question_options(parser)
    arguments = parser.parse_args(argv)
    log_to_stderr()
    check_options(arguments)
    reference = read_reference(arguments.questions, consistency=arguments.consistency)
    reference, given = answered(
        reference,
        arguments.A,
        arguments.B,
        only_asked=arguments.only_asked,
        normalize=arguments.normalize,
    )
    a, b = (
        read_outcomes(
            reference,
            predictions,
            choices=arguments.choices,
            scenes=arguments.scenes,
            attentions=attentions,
            object_features=arguments.object_features,
            map_size=arguments.map_size,
        )
        for predictions, attentions in zip(given, arguments.attentions or (None, None), strict=True)
    )
    comparison = compare(a, b, arguments.resamples, arguments.seed)
    show(*comparison_tables(comparison))
    if arguments.json is not None:
        write_json(arguments.json, asdict(comparison))
