"""Read and check the files named on the command line, and judge the predictions."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from lavis_ext.common.errors import UserError, counted, listed, shortened
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.gqa.scene_graphs import read_scene_graphs
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.evaluation.gqa.asked import asked_in_all, stated
from lavis_ext.evaluation.gqa.files import read_attentions, read_choices
from lavis_ext.evaluation.gqa.grounding import Attention, grounding_scores
from lavis_ext.evaluation.gqa.outcomes import Outcomes, judge, missing_answers
from lavis_ext.evaluation.gqa.predictions import (
    check_complete,
    check_known,
    read_predictions,
)
from lavis_ext.evaluation.gqa.questions import (
    GqaQuestion,
    answers_of,
    balanced_questions,
    entailed_ids,
)
from lavis_ext.evaluation.gqa.spelling import spelled_alike

Item = TypeVar("Item")
Items: TypeAlias = Iterator[tuple[str, Item]]
"""Values of questions with their ids."""


@dataclass(frozen=True)
class Reference:
    """Questions and answers against which predictions are scored.

    Attributes:
        source: file or folder of the questions.
        table: all questions of the source.
        questions: questions in the balanced subset.
        known: ids of all questions of the source.
        answers: correct answers to entailed questions by id; None if not requested or incomplete.
        reasons: reasons for missing metrics.
    """

    source: Path
    table: QuestionTable
    questions: Sequence[GqaQuestion]
    known: frozenset[str]
    answers: dict[str, str] | None
    reasons: dict[str, str]


def read_reference(source: Path, *, consistency: bool) -> Reference:
    """Read questions, and with ``consistency`` the answers to the entailed ones.

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
        reason = "not requested (--consistency)"
        return Reference(source, table, questions, known, None, {"consistency": reason})
    answers, reasons = entailed_answers(
        table, questions, f"{source.name} lacks", "give the file of all questions"
    )
    return Reference(source, table, questions, known, answers, reasons)


def entailed_answers(
    table: QuestionTable, questions: Sequence[GqaQuestion], lacking: str, remedy: str
) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Correct answers to entailed questions, or None and the reason by metric.

    ``lacking`` and ``remedy`` are the start and end of the reason if ``table`` is incomplete.
    """
    if all(question.entailed is None for question in questions):
        return None, {"consistency": "the questions list no entailed ones"}
    answers = answers_of(table, entailed_ids(questions))
    if missing := missing_answers(questions, answers):
        reason = f"{lacking} {len(missing):,} of the entailed ones ({listed(missing)}); {remedy}"
        return None, {"consistency": reason}
    return answers, {}


def answered(
    reference: Reference, *paths: Path, only_asked: bool, normalize: bool
) -> tuple[Reference, list[dict[str, str]]]:
    """Read files of predictions, and reduce the questions to those asked in all of them.

    Args:
        reference: the questions.
        paths: files as ``read_predictions`` takes them.
        only_asked: see :func:`asked_in_all`.
        normalize: see :func:`spelled_alike`.

    Raises UserError as reading does, and for unknown or missing questions.
    """
    given = [read_predictions(path) for path in paths]
    for path, predictions in zip(paths, given, strict=True):
        check_known(str(path), predictions, reference.known, str(reference.source))
    questions = asked_in_all(reference.questions, paths, given, only_asked=only_asked)
    reference = replace(reference, questions=questions)
    answers = {question.id: question.answer for question in questions}
    right = reference.answers
    if right is not None:
        entailed = sorted(entailed_ids(questions))
        lacking: set[str] = set()
        for path, predictions in zip(paths, given, strict=True):
            if not (only_asked or stated(path)):
                check_complete(str(path), entailed, predictions, "prediction")
            lacking |= {name for name in entailed if name not in predictions}
        if lacking:
            verb = "wasn't" if len(lacking) == 1 else "weren't"
            reason = (
                f"{counted(len(lacking), 'entailed question')} {verb} asked "
                f"({listed(sorted(lacking))})"
            )
            reasons = reference.reasons | {"consistency": reason}
            reference = replace(reference, answers=None, reasons=reasons)
        else:
            answers |= {name: right[name] for name in entailed}
    return reference, [
        spelled_alike(predictions, answers, normalize=normalize, source=str(path))
        for path, predictions in zip(paths, given, strict=True)
    ]


def read_outcomes(
    reference: Reference,
    predictions: Mapping[str, str],
    *,
    choices: Path | None = None,
    scenes: Path | None = None,
    attentions: Path | None = None,
    object_features: bool = False,
    map_size: int | None = None,
) -> Outcomes:
    """Compute the outcomes of predictions.

    Args:
        reference: the questions.
        predictions: answers by id, of :func:`answered`.
        choices: GQA's choices file.
        scenes: scene graphs.
        attentions: a list of ``questionId`` and ``attention`` (see ``grounding.Attention``).
        object_features: whether attentions are regions rather than spatial maps.
        map_size: required side of spatial maps; None for any.

    Raises UserError for choices, scenes or attentions that can't be read, have another format, or
    have unknown or missing questions.
    """
    questions = reference.questions
    reasons = dict(reference.reasons)
    grounding = None
    if attentions is None or scenes is None:
        lacking = [
            option
            for option, path in (("--attentions", attentions), ("--scenes", scenes))
            if path is None
        ]
        reasons["grounding"] = f"needs attentions and scene graphs ({', '.join(lacking)})"
    elif all(question.objects is None for question in questions):
        reasons["grounding"] = "the questions have no annotations of the objects that they name"
    else:
        items = read_attentions(attentions, object_features, map_size)
        grounding = _grounding(reference, scenes, attentions, items)
    judged = None
    if choices is None:
        reason = "needs a choices file (--choices)"
        reasons |= {"validity": reason, "plausibility": reason}
    else:
        judged = covering(read_choices(choices), choices, questions, "choices")
    return judge(
        questions,
        predictions,
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
            f"{scenes}: the object {error} named in a question isn't in its image's scene graph; "
            "is the file of other data?"
        ) from None


def _known(items: Items[Item], path: Path, reference: Reference) -> Items[Item]:
    """Yield the items of known questions; raise UserError at the end if there were others."""
    unknown = []
    for name, item in items:
        if name in reference.known:
            yield name, item
        else:
            unknown.append(name)
    check_known(str(path), unknown, (), str(reference.source))


def covering(
    items: Items[Item], path: Path, questions: Sequence[GqaQuestion], what: str
) -> Items[Item]:
    """Yield ``items``; raise UserError for repeated ones and, at the end, missing ones."""
    seen = set()
    for name, item in items:
        if name in seen:
            raise UserError(f"{path}: question {shortened(name)} has {what} more than once.")
        seen.add(name)
        yield name, item
    check_complete(str(path), [question.id for question in questions], seen, what)


def outcomes_of(reference: Reference, arguments: argparse.Namespace) -> Outcomes:
    """Call ``read_outcomes`` with the options of ``add_prediction_options``."""
    reference, (predictions,) = answered(
        reference,
        arguments.predictions,
        only_asked=arguments.only_asked,
        normalize=arguments.normalize,
    )
    return read_outcomes(
        reference,
        predictions,
        choices=arguments.choices,
        scenes=arguments.scenes,
        attentions=arguments.attentions,
        object_features=arguments.object_features,
        map_size=arguments.map_size,
    )
