"""Open a JSON file of records in whichever shape it has."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import DAMAGED, encoding_of, open_plain
from lavis_ext.datasets.questions.json_records import (
    EXPECTED,
    FIRST_RECORD,
    IMAGE_IDS,
    QUESTION_FILE,
    QUESTION_IDS,
    RecordFile,
    identifier,
)
from lavis_ext.datasets.questions.member_records import MemberFile
from lavis_ext.datasets.questions.values import contents

LISTS = ("predictions", "results", "questions", "annotations", "data", "records")
"""Members of an object that may hold its list of records."""
_NAME = re.compile(r'\s*[{,]\s*"([^"\\]*)"\s*:\s*')
_LIST_OF_OBJECTS = re.compile(r"\[\s*\{")


def record_file(path: Path, what: str = QUESTION_FILE, expected: str = EXPECTED) -> RecordFile:
    """A file of records: an object, a list, lines, or an object with a list of objects.

    The last is ``{"predictions": [{...}, ...]}`` with one of the names ``LISTS``, which must begin
    in the file's first MB. Arguments are those of :class:`RecordFile`, which reports an unreadable
    file when it is read.
    """
    member = _list_in(path)
    return RecordFile(path, what, expected) if member is None else MemberFile(path, member, what)


def keyed_records(
    path: Path, what: str, expected: str, identifiers: Sequence[str] = QUESTION_IDS
) -> Iterator[tuple[str, Any]]:
    """Yield id and value of each member of an object, or record of a list or of JSON lines.

    The list may be a member of an object (see :func:`record_file`). Records have their id under one
    of the keys ``identifiers``. Raises UserError as :class:`RecordFile` does, and for a record
    without an id.
    """
    for place, (name, record, _) in enumerate(record_file(path, what, expected)):
        found = name if name is not None else identifier(record, identifiers)
        if found is None:
            raise UserError(
                f"{path}: expected {expected}, but record {place} (counted from 0) "
                f"{contents(record)}."
            )
        yield found, record


def _list_in(path: Path) -> str | None:
    """Name of the first list of records that is a member of the file's object."""
    try:
        with open_plain(path) as file:
            head = file.read(FIRST_RECORD)
    except (OSError, *DAMAGED):
        return None
    encoding, mark = encoding_of(head)
    text, place = head[mark:].decode(encoding, errors="ignore"), 0
    decode = json.JSONDecoder().raw_decode
    while found := _NAME.match(text, place):
        if found[1] in LISTS and _LIST_OF_OBJECTS.match(text, found.end()):
            return found[1]
        try:
            value, place = decode(text, found.end())
        except (ValueError, RecursionError):
            return None
        if found[1] in (*QUESTION_IDS, *IMAGE_IDS) and isinstance(value, str | int | float):
            return None  # the object is a record, the first of JSON lines
    return None
