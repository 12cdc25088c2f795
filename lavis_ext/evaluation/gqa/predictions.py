"""Predictions in the format of GQA's leaderboard and evaluation script."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, counted, listed, shortened
from lavis_ext.common.files import check_regular, is_folder, written_aside
from lavis_ext.datasets.questions.record_files import keyed_records
from lavis_ext.datasets.questions.values import as_text, contents, kind

FORMAT = 'a list of {"questionId": ..., "prediction": ...}'
ANSWER_KEYS = ("prediction", "predicted_answer", "pred_answer", "pred_ans", "answer", "text")
"""Keys of answers in other programs' records, preferred first."""


def write_predictions(path: Path, predictions: Mapping[str, str]) -> None:
    """Write answers by question id as ``[{"questionId": ..., "prediction": ...}, ...]``.

    Format: the GQA challenge page and evaluation script (Hudson and Manning, 2019).
    """
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        separator = "["
        for name, answer in predictions.items():  # streamed, since a split may have millions
            record = json.dumps({"questionId": name, "prediction": answer})
            file.write(f"{separator}{record}")
            separator = ",\n"
        file.write("]\n" if predictions else "[]\n")


def read_predictions(*paths: Path) -> dict[str, str]:
    """Read answers by question id from files of ``write_predictions`` or other programs.

    A file is a list of records, JSON lines, or an object of records or answers by question id. Ids
    are under one of ``QUESTION_IDS``, answers under one of ``ANSWER_KEYS``.

    Raises UserError for a file that can't be read, is empty, damaged or of another format, and for
    duplicate ids, also across files.
    """
    predictions: dict[str, str] = {}
    texts: dict[str, str] = {}  # equal answers share memory
    repeated: dict[str, None] = {}
    for path in paths:
        for name, found in read_by_question(path, ANSWER_KEYS, "prediction file", FORMAT):
            alone = isinstance(found, list) and len(found) == 1  # an answer in a list
            prediction = _answer(found[0] if alone else found, name, path)
            if name in predictions:
                repeated[name] = None
            predictions[name] = texts.setdefault(prediction, prediction)
    if repeated:
        raise UserError(
            f"{', '.join(map(str, paths))}: {counted(len(repeated), 'question')} predicted more "
            f"than once ({listed(list(repeated))}); keep one prediction each."
        )
    return predictions


def read_by_question(
    path: Path, keys: Sequence[str], what: str, expected: str
) -> Iterator[tuple[str, Any]]:
    """Yield each record's id and its value under the first existing one of ``keys``.

    In an object by question id, members may be the values themselves. ``what`` (the kind of file)
    and ``expected`` (its format) are for messages. Raises UserError as :func:`keyed_records` does,
    and for a file of another format.
    """
    for name, record in keyed_records(path, what, expected):
        if not isinstance(record, dict):
            yield name, record
            continue
        key = next((key for key in keys if key in record), None)
        if key is None:
            raise UserError(
                f"{path}: expected {expected}, but the record of question {shortened(name)} "
                f"{contents(record)}."
            )
        yield name, record[key]


def check_complete(source: str, needed: Sequence[str], given: Collection[str], what: str) -> None:
    """Raise UserError, naming ``source``, if a ``needed`` question has no ``what``."""
    missing = [name for name in needed if name not in given]
    if missing:
        split = " Is the file of another split?" if len(missing) == len(needed) else ""
        raise UserError(
            f"{source}: no {what} for {counted(len(missing), 'question')} "
            f"({listed(missing)}).{split}"
        )


def check_known(source: str, given: Iterable[str], known: Collection[str], questions: str) -> None:
    """Raise UserError, naming ``source``, for ids that the file ``questions`` lacks."""
    unknown = [name for name in given if name not in known]
    if unknown:
        zeros = any("0" * count + unknown[0] in known for count in range(1, 4))
        hint = "write ids as strings, with their leading zeros"
        raise UserError(
            f"{source}: {counted(len(unknown), 'question')} that {questions} doesn't have "
            f"({listed(unknown)}); {hint + '.' if zeros else 'are they of another split?'}"
        )


def check_output(option: str, path: Path) -> None:
    """Raise UserError early if the file of ``option`` can't be written."""
    folder = path.absolute().parent
    if not is_folder(folder):
        raise UserError(f"{option}: there is no folder {path.parent} to write to.")
    if is_folder(path):
        raise UserError(f"{option}: {path} is a folder; name a file.")
    try:
        check_regular(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{option}: {path} can't be written ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option}: the folder {path.parent} can't be written to.")


def _answer(value: Any, name: str, path: Path) -> str:
    """A prediction as text, which may be empty."""
    if isinstance(value, str):
        return value
    try:
        answer = as_text(value)
        if answer is None:
            raise TypeError(kind(value))
    except TypeError as error:
        raise UserError(
            f"{path}: the prediction of question {shortened(name)} is {error}, not a string."
        ) from None
    return answer
