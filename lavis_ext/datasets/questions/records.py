"""Convert records of a question file to validated rows of the question table."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.datasets.pictures import image_id_of
from lavis_ext.datasets.questions.answers import answers_in, most_frequent
from lavis_ext.datasets.questions.files import Row
from lavis_ext.datasets.questions.json_records import QUESTION_IDS, RecordFile, identifier
from lavis_ext.datasets.questions.values import as_text, kind

IMAGE_NAMES = ("imageId", "image", "image_id", "img_id", "image_path", "file_name")
"""Keys of a question's image in records, preferred first."""

ImageId = Callable[[dict[str, Any], str, Path], str]


def read_rows(file: RecordFile, image_id: ImageId | None = None) -> Iterator[Row]:
    """Yield the rows of a question file in GQA's or LAVIS's format.

    ``image_id`` returns the image id of a record, given its name and file; by default GQA's
    ``imageId``, or the name of LAVIS's ``image`` without folder and suffix.

    Raises UserError as :class:`RecordFile` does, and naming the question for a record without a
    question or an image, with a value of a wrong type, or with a lone surrogate.
    """
    path = file.path
    image_id = image_id or _image_id
    for place, (name, record, text) in enumerate(file):
        if name is None:
            name = listed_id(record, place, path)
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
            image_id(record, name, path),
            required(record, "question", name, path),
            trained_answer(record, name, path),
            optional(types, "structural", name, path),
            optional(types, "semantic", name, path),
            optional(types, "detailed", name, path),
            text,
        )
        # Only escapes produce surrogates, and searching for them is cheaper than encoding each row.
        if "\\u" in text or not name.isascii():
            check_unicode(row, path)
        yield row


def trained_answer(record: dict[str, Any], name: str, file: Path) -> str | None:
    """The answer to train on: the most frequent one."""
    value = record.get("answer")
    if type(value) is str:  # nearly always
        return value if value and not value.isspace() else None
    try:
        return most_frequent(answers_in(record))
    except TypeError as error:
        raise UserError(
            f"{file}: {error.args[0]} of question {shortened(name)} is {error.args[1]}, not a text "
            "or a list of texts."
        ) from None


def check_unicode(row: Row, file: Path) -> None:
    """Raise UserError for a row that can't be encoded."""
    try:
        "".join(value or "" for value in row).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{file}: question '{shortened(row[0])}' contains half a character (a lone surrogate "
            "such as \\ud83d); fix it in the file."
        ) from None


def listed_id(record: Any, place: int, file: Path) -> str:
    """``question_id`` of a list's record at ``place``. Raises UserError if missing."""
    if not isinstance(record, dict):
        raise UserError(f"{file}: record {place} of the list is {kind(record)}, not an object.")
    found = identifier(record, QUESTION_IDS)
    if found is None:
        raise UserError(f"{file}: record {place} of the list has no `question_id`.")
    return found


def _image_id(record: dict[str, Any], name: str, file: Path) -> str:
    key = next((key for key in IMAGE_NAMES if key in record), "imageId")
    return image_id_of(required(record, key, name, file))  # "2354786.jpg" in LAVIS's records


def required(record: dict[str, Any], key: str, name: str, file: Path) -> str:
    """A text or number of a record. Raises UserError if missing."""
    value = optional(record, key, name, file)
    if value is None:
        raise UserError(f"{file}: question {shortened(name)} has no `{key}`.")
    return value


def optional(record: dict[str, Any], key: str, name: str, file: Path) -> str | None:
    """A text or number of a record; None if blank. Raises UserError as :func:`as_text` refuses."""
    try:
        return as_text(record.get(key))
    except TypeError as error:
        raise UserError(
            f"{file}: `{key}` of question {shortened(name)} is {error}, not a string."
        ) from None
