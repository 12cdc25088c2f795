"""Lists with one record per question: A-OKVQA, VizWiz, LAVIS's lists, LLaVA's conversations."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.datasets.pictures import image_id_of
from lavis_ext.datasets.questions.files import QuestionFiles, Row
from lavis_ext.datasets.questions.json_records import RecordFile
from lavis_ext.datasets.questions.record_files import record_file
from lavis_ext.datasets.questions.records import (
    check_unicode,
    optional,
    read_rows,
    required,
    trained_answer,
)
from lavis_ext.datasets.questions.values import is_gap, kind
from lavis_ext.datasets.vqa.annotations import numbered

log = logging.getLogger(__name__)

PLACEHOLDER = "<image>"
"""Placeholder of the image in a conversation's text."""


@dataclass(frozen=True)
class RecordLists(QuestionFiles):
    """Files of one of the formats below."""

    rows: Callable[[RecordFile, str], Iterator[Row]]
    expected: str
    image_name: str = ""

    @property
    def options(self) -> str:
        """Name of the format, and template of the images' names."""
        return f"{self.rows.__name__} {self.image_name}"

    def read(self) -> tuple[Iterator[Row], Sequence[RecordFile]]:
        """Rows of the lists, and their files."""
        readers = [record_file(path, expected=self.expected) for path in self.files]
        rows = (self.rows(reader, self.image_name) for reader in readers)
        return chain.from_iterable(rows), readers


def lavis_rows(file: RecordFile, image_name: str) -> Iterator[Row]:
    """LAVIS's lists: ``question_id``, ``question``, ``image``, one or several ``answer``."""
    return read_rows(file, image_id=_image_path)


def aokvqa_rows(file: RecordFile, image_name: str) -> Iterator[Row]:
    """A-OKVQA's list (Schwenk et al., ECCV 2022): ``image_id`` by number, ``direct_answers``."""

    def image_id(record: dict[str, Any], name: str, path: Path) -> str:
        where = f"{path}: `image_id` of question {shortened(name)}"
        return numbered(image_name, record.get("image_id"), "", where)

    return read_rows(file, image_id=image_id)


def vizwiz_rows(file: RecordFile, image_name: str) -> Iterator[Row]:
    """VizWiz's list (Gurari et al., CVPR 2018): one question per image, with the image's name."""
    for place, record, text in _objects(file):
        image = required(record, "image", f"of record {place}", file.path)
        row = (
            image,
            image_id_of(image),
            required(record, "question", image, file.path),
            trained_answer(record, image, file.path),
            None,
            None,
            None,
            text,
        )
        check_unicode(row, file.path)
        yield row


def conversation_rows(file: RecordFile, image_name: str) -> Iterator[Row]:
    """LLaVA's conversations: each turn of ``human`` is a question, the next of ``gpt`` its answer.

    Its id is ``RECORD/TURN``, turns counted from 0. Records without an image are left out.
    """
    without, seen = 0, set()
    for place, record, _ in _objects(file):
        name = optional(record, "id", str(place), file.path) or str(place)
        if name in seen:  # some files repeat the id in records about the same image
            name = f"{name}@{place}"
        seen.add(name)
        if is_gap(record.get("image")):
            without += 1
            continue
        image = _image_path(record, name, file.path)
        for turn, (question, answer) in enumerate(_turns(record, name, file.path)):
            turn_record = {"question_id": f"{name}/{turn}", "question": question, "answer": answer}
            row = (
                f"{name}/{turn}",
                image,
                question,
                answer,
                None,
                None,
                None,
                json.dumps(turn_record),
            )
            check_unicode(row, file.path)
            yield row
    if without:
        log.warning("%s: %d records without an image are left out.", file.path, without)


def _turns(record: dict[str, Any], name: str, path: Path) -> Iterator[tuple[str, str | None]]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(each, dict) for each in turns):
        raise UserError(
            f"{path}: record {shortened(name)} has no `conversations`, a list of "
            '{"from": "human" or "gpt", "value": ...}.'
        )
    for place, turn in enumerate(turns):
        if turn.get("from") != "human":
            continue
        question = required(turn, "value", name, path).replace(PLACEHOLDER, " ").strip()
        if not question:
            raise UserError(
                f"{path}: turn {place} of record {shortened(name)} has an empty question."
            )
        reply = turns[place + 1] if place + 1 < len(turns) else {}
        answered = reply.get("from") == "gpt"
        yield question, optional(reply, "value", name, path) if answered else None


def _objects(file: RecordFile) -> Iterator[tuple[int, dict[str, Any], str]]:
    for place, (name, record, text) in enumerate(file):
        if name is not None or not isinstance(record, dict):
            found = "an object" if name is not None else f"a list with {kind(record)}"
            raise UserError(f"{file.path}: expected a list of objects, but the file is {found}.")
        yield place, record, text


def _image_path(record: dict[str, Any], name: str, path: Path) -> str:
    return image_id_of(required(record, "image", name, path))
