"""Read a list of records in a member of a JSON object in bounded memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.questions.json_records import LONGEST_RECORD, Element, RecordFile

_NAME = r'[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*'
_FIRST = re.compile(_NAME)
_NEXT = re.compile(r"[ \t\n\r]*," + _NAME)
_END = re.compile(r"[ \t\n\r]*}")


class MemberFile(RecordFile):
    """Iterates over a list that is a member of a file's object, such as VQA's ``questions``.

    Args:
        path: the file.
        member: key of the list.
        what: kind of file, for messages.

    Attributes:
        others: other members of the object read so far.
    """

    def __init__(self, path: Path, member: str, what: str) -> None:
        super().__init__(path, what, f"an object with the list `{member}`")
        self._member = member
        self.others: dict[str, Any] = {}

    def _elements(self, stream: BinaryIO) -> Iterator[Element]:
        if self._opening(stream) == "[":
            raise self._other_shape("a list")
        found = False
        while (name := self._name(stream, first=not (found or self.others))) is not None:
            if name == self._member and self._text.startswith("[", self._place):
                self._place += 1
                found = True
                yield from self._members(stream, keyed=False)
            else:
                self.others[name] = self._value(stream)
        self._check_end(stream)
        if not found:
            has = f"an object with {listed(list(self.others))}" if self.others else "empty"
            raise self._other_shape(has)
        if not self._records:
            raise UserError(f"{self.path}: the list `{self._member}` is empty.")

    def _name(self, stream: BinaryIO, *, first: bool) -> str | None:
        """Read the next member's key, up to its value; None after the closing bracket."""
        while True:
            found = (_FIRST if first else _NEXT).match(self._text, self._place)
            if found and found.end() < len(self._text):
                self._place = found.end()
                return found[1]
            if end := _END.match(self._text, self._place):
                self._place = end.end()
                return None
            if self._ended or len(self._text) - self._place > LONGEST_RECORD:
                place = len(self._text) if found else self._place
                error = json.JSONDecodeError("Expecting a member's name", self._text, place)
                raise self._fault(error, False)
            self._read_on(stream, False)

    def _value(self, stream: BinaryIO) -> Any:
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_incomplete(error):
                    raise self._fault(error, False) from None
            else:
                if end < len(self._text) or self._ended:
                    self._place = end
                    return value
            self._read_on(stream, False)
