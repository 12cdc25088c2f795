"""From a record of a question file to a row of the question table, checked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.datasets.gqa.json_records import RecordFile, kind

Row = tuple[str, str, str, str | None, str | None, str | None, str | None, str]
"""The columns of ``question_table.SCHEMA``, and the record as it stands in its file."""


def read_rows(file: RecordFile) -> Iterator[Row]:
    """The rows of a question file.

    Raises UserError as :class:`RecordFile` does, and naming the question for a record without a
    question or an image, with a member of another type, or with half of a character.
    """
    path = file.path
    for place, (name, record, text) in enumerate(file):
        if name is None:
            name = _listed_id(record, place, path)
        if not isinstance(record, dict):
            raise UserError(
                f"{path}: question {shortened(name)} is {kind(record)}, not an object with "
                "`question` and `imageId`."
            )
        types = record.get("types") or {}
        if not isinstance(types, dict):
            raise UserError(
                f"{path}: `types` of question {shortened(name)} is {kind(types)}, not an object."
            )
        row = (
            name,
            _image_id(record, name, path),
            _required(record, "question", name, path),
            _optional(record, "answer", name, path),
            _optional(types, "structural", name, path),
            _optional(types, "semantic", name, path),
            _optional(types, "detailed", name, path),
            text,
        )
        # Only an escape can write one, and looking for escapes is cheaper than encoding every row.
        if "\\u" in text or not name.isascii():
            _refuse_half_characters(row, path)
        yield row


def _refuse_half_characters(row: Row, file: Path) -> None:
    try:
        "".join(value or "" for value in row).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{file}: question '{shortened(row[0])}' holds half of a character (a lone surrogate "
            "such as \\ud83d); write the file again."
        ) from None


def _listed_id(record: Any, place: int, file: Path) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{file}: record {place} of the list is {kind(record)}, not an object.")
    identifier = record.get("question_id")
    if not isinstance(identifier, str | int):
        raise UserError(f"{file}: record {place} of the list has no `question_id`.")
    return str(identifier)


def _image_id(record: dict[str, Any], name: str, file: Path) -> str:
    if "imageId" in record or "image" not in record:
        return _required(record, "imageId", name, file)
    return Path(_required(record, "image", name, file)).stem  # LAVIS: "2354786.jpg"


def _required(record: dict[str, Any], key: str, name: str, file: Path) -> str:
    value = _optional(record, key, name, file)
    if value is None:
        raise UserError(f"{file}: question {shortened(name)} has no `{key}`.")
    return value


def _optional(record: dict[str, Any], key: str, name: str, file: Path) -> str | None:
    value = record.get(key)
    if type(value) is str:  # nearly always, and this is called six times a record
        return value if value and not value.isspace() else None
    if isinstance(value, list) and len(value) == 1:  # LAVIS's lists of answers
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UserError(
            f"{file}: `{key}` of question {shortened(name)} is {kind(value)}, not a text."
        )
    return str(value) if value is not None and str(value).strip() else None
