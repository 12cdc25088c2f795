"""Predictions in the format of GQA's leaderboard and evaluation script."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, listed, shortened
from lavis_ext.common.files import written_aside
from lavis_ext.datasets.gqa.json_records import RecordFile, kind

FORMAT = 'a list of {"questionId": ..., "prediction": ...}'


def write_predictions(path: Path, predictions: Mapping[str, str]) -> None:
    """Write answers by question id as ``[{"questionId": ..., "prediction": ...}, ...]``.

    Format: the GQA challenge page and evaluation script (Hudson and Manning, 2019).
    """
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        separator = "["
        for name, answer in predictions.items():  # of a split of millions, too long for one text
            record = json.dumps({"questionId": name, "prediction": answer})
            file.write(f"{separator}{record}")
            separator = ",\n"
        file.write("]\n" if predictions else "[]\n")


def read_predictions(*paths: Path) -> dict[str, str]:
    """Answers by question id, of files as ``write_predictions`` writes them.

    Raises UserError for a file that can't be read, is empty, damaged or of another shape, and for
    an id that stands twice, be it in two files.
    """
    predictions: dict[str, str] = {}
    texts: dict[str, str] = {}  # each answer is held once
    repeated: dict[str, None] = {}
    for path in paths:
        for name, prediction in read_by_question(path, "prediction", "prediction file", FORMAT):
            if not isinstance(prediction, str):
                raise UserError(
                    f"{path}: `prediction` of question {shortened(name)} is {kind(prediction)}, "
                    "not a text."
                )
            if name in predictions:
                repeated[name] = None
            predictions[name] = texts.setdefault(prediction, prediction)
    if repeated:
        raise UserError(
            f"{', '.join(map(str, paths))}: {_questions(len(repeated))} predicted more than once "
            f"({listed(list(repeated))}); give one prediction each."
        )
    return predictions


def read_by_question(path: Path, key: str, what: str, expected: str) -> Iterator[tuple[str, Any]]:
    """Id and ``key`` of each record of a list with ``questionId`` and ``key``.

    ``what`` the file is and the shape that is ``expected`` of it are for messages. Raises UserError
    as :class:`RecordFile` does, and for a file of another shape.
    """
    for name, record, _ in RecordFile(path, what, expected):
        if name is not None:
            raise UserError(f"{path}: expected {expected}, but the file is an object.")
        if not isinstance(record, dict) or not {"questionId", key} <= record.keys():
            found = (
                f"has {listed(list(record))}" if isinstance(record, dict) else f"is {kind(record)}"
            )
            raise UserError(f"{path}: expected {expected}, but a record {found}.")
        identifier = record["questionId"]
        if not isinstance(identifier, str):
            raise UserError(
                f"{path}: questionId {identifier!r} is {kind(identifier)}; ids are texts, as they "
                'can begin with a zero ("02930152").'
            )
        yield identifier, record[key]


def refuse_missing(source: str, needed: Sequence[str], given: Collection[str], what: str) -> None:
    """Raise UserError, which names ``source``, if a ``needed`` question has no ``what``."""
    missing = [name for name in needed if name not in given]
    if missing:
        split = " Is the file of another split?" if len(missing) == len(needed) else ""
        raise UserError(
            f"{source}: no {what} for {_questions(len(missing))} ({listed(missing)}).{split}"
        )


def refuse_unknown(
    source: str, given: Iterable[str], known: Collection[str], questions: str
) -> None:
    """Raise UserError, which names ``source``, for a question that file ``questions`` lacks."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UserError(
            f"{source}: {_questions(len(unknown))} that {questions} doesn't have "
            f"({listed(unknown)}); are they of another split?"
        )


def check_output(option: str, path: Path) -> None:
    """Raise UserError, before much is read, for an ``option`` that can't be written to."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{option}: there is no folder {path.parent} to write to.")
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder; name a file.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: the folder {path.parent} can't be written to.")


def _questions(count: int) -> str:
    return f"{count:,} question{'' if count == 1 else 's'}"
