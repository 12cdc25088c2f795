"""Read GQA's questions with their annotated objects."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import image_id_of
from lavis_ext.datasets.questions.record_files import keyed_records

FORMAT = "GQA's questions, an object keyed by question id, or a list of them with `questionId`"


@dataclass(frozen=True, slots=True)
class GroundedQuestion:
    """A question with GQA's annotations.

    ``spans`` are (first word, word after the last) of mentions. ``asked`` are ids of objects named
    in the question, ``objects`` of those named in the question or its answers.
    """

    id: str
    text: str
    answer: str
    spans: tuple[tuple[int, int], ...]
    asked: frozenset[str]
    objects: frozenset[str]


def read_grounded_questions(path: Path) -> dict[str, list[GroundedQuestion]]:
    """Read GQA's questions by image id.

    Raises UserError naming the file if it is missing or isn't in GQA's format.
    """
    grouped: dict[str, list[GroundedQuestion]] = defaultdict(list)
    for question_id, record in keyed_records(path, "question file", FORMAT):
        try:
            grouped[image_id_of(record["imageId"])].append(_grounded(question_id, record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: question {question_id} has no annotations in GQA's format ({error!r})."
            ) from None
    return dict(grouped)


def _grounded(question_id: str, record: dict[str, Any]) -> GroundedQuestion:
    annotations = record.get("annotations") or {}
    named = [annotations.get(part) or {} for part in ("question", "answer", "fullAnswer")]
    return GroundedQuestion(
        id=question_id,
        text=record["question"].lower(),
        answer=record["answer"],
        spans=tuple(_span(key) for key in named[0]),
        asked=frozenset(named[0].values()),
        objects=frozenset(name for names in named for name in names.values()),
    )


def _span(key: str) -> tuple[int, int]:
    """Parse GQA's "3:5" or "3" to (first, after the last)."""
    first, _, end = key.partition(":")
    return int(first), int(end) if end else int(first) + 1
