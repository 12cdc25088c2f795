"""Question fields needed by GQA's metrics."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.questions.table import QuestionTable

UNCOUNTED_OPERATIONS = ("exist", "query: name", "choose name")
"""Final operations that don't count as reasoning steps in GQA's evaluation script."""


@dataclass(frozen=True, slots=True)
class GqaQuestion:
    """A question with its answer and GQA's annotations of its structure.

    Attributes:
        id: question id.
        image_id: image id.
        answer: correct answer.
        words: number of words.
        steps: number of reasoning steps; None without a program.
        structural, semantic, detailed: types; None if missing.
        group: global answer group; None if missing.
        entailed: ids of other questions whose answers follow from its answer; None if not
            annotated.
        objects: ids of objects in the question and its full answer, once per mention; None if not
            annotated.
    """

    id: str
    image_id: str
    answer: str
    words: int
    steps: int | None
    structural: str | None
    semantic: str | None
    detailed: str | None
    group: str | None
    entailed: tuple[str, ...] | None
    objects: tuple[str, ...] | None


def balanced_questions(table: QuestionTable) -> list[GqaQuestion]:
    """Questions of a table in the balanced subset, in order.

    GQA is scored on these only; the others are for consistency.

    Raises UserError for questions without an answer, and naming the first record that isn't in
    GQA's format.
    """
    rows = table.balanced()
    columns = ("question_id", "image_id", "question", "answer")
    texts = table.texts(rows, *columns)
    unanswered = [name for name, answer in zip(texts[0], texts[3], strict=True) if answer is None]
    if unanswered:
        raise UserError(
            f"{len(unanswered)} of {len(rows)} questions have no `answer` ({listed(unanswered)}), "
            "so they can't be scored here. For the server's file of predictions use "
            "python -m lavis_ext.evaluation.leaderboard."
        )
    return [
        _question(table.structure(row), *known) for row, *known in zip(rows, *texts, strict=True)
    ]


def answers_of(table: QuestionTable, ids: Iterable[str]) -> dict[str, str]:
    """Correct answers by id to those of the questions in the table."""
    wanted = pa.array(set(ids), pa.string())
    rows = np.flatnonzero(pc.is_in(table.data["question_id"], value_set=wanted))
    names, answers = table.texts(rows, "question_id", "answer")
    return {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}


def entailed_ids(questions: Iterable[GqaQuestion]) -> set[str]:
    """Ids of all entailed questions."""
    return {name for question in questions for name in question.entailed or ()}


def _question(
    record: dict[str, Any], question_id: str, image_id: str, text: str, answer: str
) -> GqaQuestion:
    try:
        types = record.get("types") or {}
        entailed = record.get("entailed")
        return GqaQuestion(
            id=question_id,
            image_id=image_id,
            answer=answer,
            words=len(text.split()),
            steps=_steps(record.get("semantic")),
            structural=_shared(types.get("structural")),
            semantic=_shared(types.get("semantic")),
            detailed=_shared(types.get("detailed")),
            group=_shared((record.get("groups") or {}).get("global")),
            entailed=None if entailed is None else _others(entailed, question_id),
            objects=_objects(record.get("annotations")),
        )
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise UserError(
            f"question {question_id} has `semantic`, `types`, `groups`, `entailed` or `annotations`"
            f" of another form than GQA's ({error!r})."
        ) from None


def _steps(program: list[dict[str, Any]] | None) -> int | None:
    if program is None:
        return None
    operations = [f"{step['operation']}: {step['argument']}" for step in program]
    # The script searches the whole operation, so "exist" in an argument counts.
    return sum(not any(o in operation for o in UNCOUNTED_OPERATIONS) for operation in operations)


def _others(entailed: list[str], question_id: str) -> tuple[str, ...]:
    "".join(entailed).encode()  # raises for non-text and lone surrogates
    return tuple(name for name in entailed if name != question_id)


def _objects(annotations: dict[str, dict[str, str]] | None) -> tuple[str, ...] | None:
    if annotations is None:
        return None
    mentions = [(annotations.get(part) or {}).values() for part in ("question", "fullAnswer")]
    return tuple(str(name) for names in mentions for name in names)


def _shared(text: str | None) -> str | None:
    """Intern the text to save memory."""
    return None if text is None else sys.intern(text)
