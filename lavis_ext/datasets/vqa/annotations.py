"""VQAv2's and OK-VQA's pairs of files: questions, and annotations with ten people's answers.

Formats: https://visualqa.org/download.html (Goyal et al., CVPR 2017; Marino et al., CVPR 2019).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, listed, shortened
from lavis_ext.datasets.questions.answers import answers_in, most_frequent
from lavis_ext.datasets.questions.files import QuestionFiles, Row
from lavis_ext.datasets.questions.json_records import RecordFile
from lavis_ext.datasets.questions.member_records import MemberFile
from lavis_ext.datasets.questions.records import check_unicode, listed_id, optional
from lavis_ext.datasets.questions.records import required as text_of
from lavis_ext.datasets.questions.values import as_text, kind

SUBTYPE = re.compile(r"(train|val|test)(-dev)?(\d{4})")
"""COCO's split in a file's name or ``data_subtype``; test-dev's images are those of test."""


def numbered(template: str, image_id: Any, subtype: str, where: str) -> str:
    """File name of a COCO image. Raises UserError, prefixed with ``where``, for an invalid id."""
    number = _comparable(image_id)
    if number is None or not number.isdecimal():
        raise UserError(f"{where} is {shortened(repr(image_id))}, not a whole number.")
    try:
        return template.format(image_id=int(number), data_subtype=subtype)
    except ValueError:  # thousands of digits
        raise UserError(f"{where} has too many digits.") from None


@dataclass(frozen=True)
class AnnotationPair(QuestionFiles):
    """A questions file and, if answers are known, its annotations file.

    Attributes:
        image_name: template of the images' names, with ``image_id`` and ``data_subtype``.
    """

    image_name: str

    @property
    def options(self) -> str:
        """Template of the images' names."""
        return self.image_name

    def read(self) -> tuple[Iterator[Row], Sequence[RecordFile]]:
        """Rows of the questions, and both files."""
        questions = MemberFile(self.files[0], "questions", "questions file")
        if len(self.files) == 1:
            return self._unanswered(questions), [questions]
        annotations = MemberFile(self.files[1], "annotations", "annotations file")
        return self._answered(questions, annotations), [questions, annotations]

    def _unanswered(self, questions: MemberFile) -> Iterator[Row]:
        for name, record in _by_id(questions):
            yield self._row(name, record, None, questions)

    def _answered(self, questions: MemberFile, annotations: MemberFile) -> Iterator[Row]:
        """Read both files in parallel; usually the order is the same, so few records are held."""
        asked: dict[str, dict[str, Any]] = {}
        answered: dict[str, dict[str, Any]] = {}
        pairs = zip_longest(_by_id(questions), _by_id(annotations))
        for question, annotation in pairs:
            for this, other, item in (
                (asked, answered, question),
                (answered, asked, annotation),
            ):
                if item is None:
                    continue
                name, record = item
                if name not in other:
                    this[name] = record
                    continue
                asks, answers = record, other.pop(name)
                if this is answered:
                    asks, answers = answers, asks
                row = self._row(name, asks, answers, questions)
                self._check_same_image(name, asks, answers, questions.path, annotations.path)
                yield row
        if asked or answered:
            raise UserError(
                f"{questions.path} and {annotations.path}: {len(asked)} questions have no "
                f"annotation ({listed(sorted(asked)) or 'none'}), and {len(answered)} annotations "
                f"no question ({listed(sorted(answered)) or 'none'}); are they of the same split?"
            )

    def _check_same_image(
        self,
        name: str,
        question: Mapping[str, Any],
        annotation: Mapping[str, Any],
        questions: Path,
        annotations: Path,
    ) -> None:
        asked, answered = (_comparable(each.get("image_id")) for each in (question, annotation))
        if answered not in (asked, None):
            raise UserError(
                f"{annotations}: question {shortened(name)} is about image "
                f"{shortened(str(answered))}, but in {questions} about image "
                f"{shortened(str(asked))}; are they of the same split?"
            )

    def _row(
        self,
        name: str,
        question: dict[str, Any],
        annotation: dict[str, Any] | None,
        file: MemberFile,
    ) -> Row:
        path = file.path
        text = text_of(question, "question", name, path)
        where = f"{path}: `image_id` of question {shortened(name)}"
        image = numbered(self.image_name, question.get("image_id"), self._subtype(file), where)
        record: dict[str, Any] = {
            "question_id": name,
            "image_id": question["image_id"],
            "question": text,
        }
        answer = kind_of_question = None
        if annotation is not None:
            source = self.files[1]
            answers = _answers(annotation, name, source)
            answer = most_frequent(answers)
            kind_of_question = optional(annotation, "question_type", name, source)
            record |= {
                "answers": answers,
                "question_type": kind_of_question,
                "answer_type": optional(annotation, "answer_type", name, source),
            }
        row = (name, image, text, answer, None, None, kind_of_question, json.dumps(record))
        check_unicode(row, path)
        return row

    def _subtype(self, file: MemberFile) -> str:
        """COCO's split from the file's content, else from its name."""
        if "data_subtype" not in self.image_name:
            return ""
        found = SUBTYPE.search(f"{file.others.get('data_subtype', '')} {file.path.name}")
        if found is None:
            raise UserError(
                f"{file.path}: neither `data_subtype` nor the file's name has the images' COCO "
                "split, such as train2014. Set the images' names with image_name, such as "
                '"COCO_train2014_{image_id:012d}".'
            )
        return f"{found[1]}{found[3]}"


def _comparable(image_id: Any) -> str | None:
    """An image id as text; None for other types."""
    try:
        return as_text(image_id)
    except (TypeError, ValueError):  # an integer with thousands of digits
        return None


def _answers(annotation: dict[str, Any], name: str, file: Path) -> list[str]:
    try:
        return answers_in({"answers": annotation.get("answers")})
    except TypeError as error:
        raise UserError(
            f"{file}: {error.args[0]} of question {shortened(name)} holds {error.args[1]}, not "
            'VQA\'s {"answer": ...}.'
        ) from None


def _by_id(file: MemberFile) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, (_, record, _) in enumerate(file):
        name = listed_id(record, place, file.path)
        if not isinstance(record, dict):
            raise UserError(f"{file.path}: record {place} is {kind(record)}, not an object.")
        yield name, record
