"""GQA's questions with the objects that they name."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import parse_json


@dataclass(frozen=True, slots=True)
class GroundedQuestion:
    """A question with GQA's annotations of it.

    ``spans`` are (first word, word after the last) of mentions. ``asked`` are the ids of the
    objects that the question names, ``objects`` of those that it or its answers name.
    """

    id: str
    text: str
    answer: str
    spans: tuple[tuple[int, int], ...]
    asked: frozenset[str]
    objects: frozenset[str]


def read_grounded_questions(path: Path) -> dict[str, list[GroundedQuestion]]:
    """GQA's questions by image id.

    Raises UserError naming the file if it is missing or has no records of GQA's form.
    """
    grouped: dict[str, list[GroundedQuestion]] = defaultdict(list)
    for question_id, record in _records(path).items():
        try:
            grouped[record["imageId"]].append(_grounded(question_id, record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: question {question_id} has no annotations of GQA's form ({error!r})."
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
    """GQA's "3:5" or "3" as (first, after the last)."""
    first, _, end = key.partition(":")
    return int(first), int(end) if end else int(first) + 1


def _records(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: the questions can't be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: the questions aren't JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected GQA's questions, an object keyed by question id.")
    return content
