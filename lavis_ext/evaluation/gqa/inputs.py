"""From the files named on the command line to outcomes, and what is wrong with the files."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from lavis_ext.common.errors import UserError, listed, shortened
from lavis_ext.datasets.gqa.question_table import QuestionTable
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.gqa.scene_graphs import read_scene_graphs
from lavis_ext.evaluation.gqa.bootstrap import FEWEST_RESAMPLES, RESAMPLES
from lavis_ext.evaluation.gqa.files import read_attentions, read_choices
from lavis_ext.evaluation.gqa.grounding import Attention, grounding_scores
from lavis_ext.evaluation.gqa.outcomes import Outcomes, judge, missing_answers
from lavis_ext.evaluation.gqa.predictions import (
    check_output,
    read_predictions,
    refuse_missing,
    refuse_unknown,
)
from lavis_ext.evaluation.gqa.questions import (
    GqaQuestion,
    answers_of,
    balanced_questions,
    entailed_ids,
)

ATTENTIONS_HELP = (
    'list of {"questionId": ..., "attention": ...}, for grounding: spatial maps of any one size, '
    "the first index running from left to right"
)

Item = TypeVar("Item")
Items: TypeAlias = Iterator[tuple[str, Item]]
"""Something of each of several questions, with its id."""


@dataclass(frozen=True)
class Reference:
    """What predictions are held against.

    Attributes:
        source: the questions' file or folder.
        table: all questions of the source.
        questions: those of the balanced subset.
        known: ids of all questions of the source.
        answers: right answers by id to what the questions entail; None where they aren't asked for
            or the source lacks some.
        reasons: why metrics aren't computed.
    """

    source: Path
    table: QuestionTable
    questions: Sequence[GqaQuestion]
    known: frozenset[str]
    answers: dict[str, str] | None
    reasons: dict[str, str]


def read_reference(source: Path, *, consistency: bool) -> Reference:
    """Read questions, with the answers that consistency needs where it is asked for.

    Raises UserError as ``read_questions`` and ``balanced_questions`` do, and for a source without
    any balanced question.
    """
    table = read_questions(source)
    try:
        questions = balanced_questions(table)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if not questions:
        raise UserError(
            f"{source}: none of its {len(table):,} questions is in the balanced subset "
            "(isBalanced), on which GQA is scored."
        )
    known = frozenset(table.data["question_id"].to_pylist())
    if not consistency:
        reason = "it was not asked for (--consistency)"
        return Reference(source, table, questions, known, None, {"consistency": reason})
    answers, reasons = entailed_answers(
        table, questions, f"{source.name} lacks", "give the file of all questions"
    )
    return Reference(source, table, questions, known, answers, reasons)


def entailed_answers(
    table: QuestionTable, questions: Sequence[GqaQuestion], lacking: str, remedy: str
) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Right answers to what ``questions`` entail, or None and the reason by metric.

    ``lacking`` is how the reason begins where ``table`` doesn't have them all, ``remedy`` its end.
    """
    if all(question.entailed is None for question in questions):
        return None, {"consistency": "the questions say nothing of what they entail"}
    answers = answers_of(table, entailed_ids(questions))
    if missing := missing_answers(questions, answers):
        reason = f"{lacking} {len(missing):,} of the entailed ones ({listed(missing)}); {remedy}"
        return None, {"consistency": reason}
    return answers, {}


def read_outcomes(
    reference: Reference,
    predictions: Path,
    *,
    choices: Path | None = None,
    scenes: Path | None = None,
    attentions: Path | None = None,
    object_features: bool = False,
    map_size: int | None = None,
) -> Outcomes:
    """Judge one file of predictions by these files.

    Args:
        reference: the questions.
        predictions: as ``read_predictions`` takes it.
        choices: GQA's choices file.
        scenes: scene graphs.
        attentions: a list of ``questionId`` and ``attention`` (see ``grounding.Attention``).
        object_features: whether attentions are of regions, not spatial maps.
        map_size: the side that spatial maps must have; None for any.

    Raises UserError for a file that can't be read, is of another shape or of other questions, and
    for one that lacks some.
    """
    questions = reference.questions
    needed = [question.id for question in questions]
    if reference.answers is not None:
        needed += sorted(reference.answers.keys() - set(needed))
    given = read_predictions(predictions)
    refuse_unknown(str(predictions), given, reference.known, str(reference.source))
    refuse_missing(str(predictions), needed, given, "prediction")
    reasons = dict(reference.reasons)
    grounding = None
    if attentions is None or scenes is None:
        lacking = [
            option
            for option, path in (("--attentions", attentions), ("--scenes", scenes))
            if path is None
        ]
        reasons["grounding"] = f"it needs attentions and scene graphs ({', '.join(lacking)})"
    elif all(question.objects is None for question in questions):
        reasons["grounding"] = "the questions have no annotations of the objects that they name"
    else:
        items = read_attentions(attentions, object_features, map_size)
        grounding = _grounding(reference, scenes, attentions, items)
    judged = None
    if choices is None:
        reason = "it needs a choices file (--choices)"
        reasons |= {"validity": reason, "plausibility": reason}
    else:
        judged = covering(read_choices(choices), choices, questions, "choices")
    return judge(
        questions,
        given,
        answers=reference.answers,
        choices=judged,
        grounding=grounding,
        reasons=reasons,
    )


def _grounding(
    reference: Reference, scenes: Path, path: Path, items: Items[Attention]
) -> dict[str, float]:
    graphs = read_scene_graphs(scenes)
    images = {question.image_id: None for question in reference.questions}
    without = [image for image in images if image not in graphs]
    if without:
        raise UserError(
            f"{scenes}: no scene graph for {len(without):,} of {len(images):,} images "
            f"({listed(without)}); is it of another split?"
        )
    known = _known(items, path, reference)
    complete = covering(known, path, reference.questions, "attention")
    try:
        return grounding_scores(reference.questions, graphs, complete)
    except KeyError as error:
        raise UserError(
            f"{scenes}: there is no object {error} in the scene graph of the image whose question "
            "names it; is it of other data?"
        ) from None


def _known(items: Items[Item], path: Path, reference: Reference) -> Items[Item]:
    """Go on with ``items`` of questions that the reference has, and refuse others at the end."""
    unknown = []
    for name, item in items:
        if name in reference.known:
            yield name, item
        else:
            unknown.append(name)
    refuse_unknown(str(path), unknown, (), str(reference.source))


def covering(
    items: Items[Item], path: Path, questions: Sequence[GqaQuestion], what: str
) -> Items[Item]:
    """Go on with ``items``, and refuse those that come twice and, at the end, those missing."""
    seen = set()
    for name, item in items:
        if name in seen:
            raise UserError(f"{path}: question {shortened(name)} has {what} more than once.")
        seen.add(name)
        yield name, item
    refuse_missing(str(path), [question.id for question in questions], seen, what)


def outcomes_of(reference: Reference, arguments: argparse.Namespace) -> Outcomes:
    """``read_outcomes`` of what ``add_prediction_options`` takes."""
    return read_outcomes(
        reference,
        arguments.predictions,
        choices=arguments.choices,
        scenes=arguments.scenes,
        attentions=arguments.attentions,
        object_features=arguments.object_features,
        map_size=arguments.map_size,
    )


def add_prediction_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that name one set of predictions and what its grounding is computed from."""
    parser.add_argument(
        "--predictions",
        type=Path,
        required=required,
        help='list of {"questionId": ..., "prediction": ...}',
    )
    parser.add_argument("--attentions", type=Path, help=ATTENTIONS_HELP)
    add_grounding_options(parser)


def add_grounding_options(parser: argparse.ArgumentParser) -> None:
    """The options that grounding needs besides attentions."""
    parser.add_argument("--scenes", type=Path, help="scene graphs, for grounding")
    parser.add_argument(
        "--objectFeatures",
        dest="object_features",
        action="store_true",
        help="attentions are of regions, [x0, y0, x1, y1, attention] each",
    )
    parser.add_argument(
        "--mapSize",
        dest="map_size",
        type=int,
        help="refuse spatial maps of another side than this",
    )


def add_question_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that name what predictions are held against."""
    parser.add_argument(
        "--questions",
        type=Path,
        required=required,
        help="questions of the split, a file or a folder",
    )
    parser.add_argument("--choices", type=Path, help="choices file, for validity and plausibility")
    parser.add_argument(
        "--consistency",
        action="store_true",
        help="score the entailed questions too; needs the file of all questions, and predictions "
        "for those that are entailed",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help="draws of the bootstrap; 0 for no intervals (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the metrics to as well")


def check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError, before anything is read, for what can only fail at the end."""
    if arguments.resamples != 0 and arguments.resamples < FEWEST_RESAMPLES:
        raise UserError(
            f"--resamples is {arguments.resamples}; it must be 0, for no intervals, or at least "
            f"{FEWEST_RESAMPLES}."
        )
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; it must not be negative.")
    if arguments.json is not None:
        check_output("--json", arguments.json)
