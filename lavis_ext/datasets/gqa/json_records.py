"""One JSON file of many records, read in memory that its length doesn't change.

GQA's file of all training questions is one JSON object of over 10 GB on one line, so it can be
neither loaded whole nor split by lines. A window of some MB slides over it, and json's scanner
takes one record after another from it.

No JSON library of those measured is as fast and as small (``python -m benchmarks.json_readers``;
1 M records of GQA's length, 836 MB, one CPU; records a CPU second, and growth of the process):

    this module, with each record's text and the file's hash   178-187 thousand     20 MB
    ijson 3.6, backend yajl2_c                                   26-27 thousand     33 MB
    orjson 3.13, which takes a whole document                        30 thousand  7,215 MB
    pysimdjson 7.0, which takes a whole document                236-243 thousand  2,994 MB

ijson names no byte or record in its errors, refuses ``NaN`` and a byte order mark, reads a lone
surrogate as ``?``, and has no text of a record, which the question store keeps.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lavis_ext.common.errors import UserError

CHUNK = 4 * 2**20
"""Bytes that are read at a time."""
LONGEST_RECORD = 64 * 2**20
"""Characters of a record, over which the file is taken for one of another shape."""
LONGEST_TOKEN = 16
"""Over the characters of what JSON can't recognize before its end: a literal or an escape."""

# JSON's white space is less than what `\s` matches.
_BLANKS = re.compile(r"[ \t\n\r]*")
_NEXT_ELEMENT = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_NEXT_MEMBER = re.compile(r'[ \t\n\r]*,[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")

Element = tuple[str | None, Any, str]
"""The member's name (None in a list), its value, and the value's JSON text."""


class RecordFile:
    """Iterates over the members of a file's object, or the elements of its list.

    Args:
        path: the file.
        what: what the file is, for messages.
        expected: the shape that it must have, for messages.

    Attributes:
        path: the file.
        bytes_read: bytes read so far.
        digest: of these bytes.

    Iterating raises UserError naming the file, and the record and byte where there is one: for a
    file that can't be read, is empty, isn't UTF-8 or JSON, breaks off, or is neither an object nor
    a list.
    """

    def __init__(
        self,
        path: Path,
        what: str = "question file",
        expected: str = "GQA's object keyed by question id, or LAVIS's list of records",
    ) -> None:
        self.path = path
        self._what = what
        self._expected = expected
        self.bytes_read = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._place = 0  # in the text
        self._bytes_before_text = 0
        self._ended = False
        self._records = 0

    def __iter__(self) -> Iterator[Element]:
        try:
            with self.path.open("rb") as stream:
                yield from self._elements(stream)
        except OSError as error:
            raise UserError(
                f"{self.path}: the {self._what} can't be read ({error.strerror})."
            ) from None
        except ValueError:  # of whole numbers with thousands of digits
            raise UserError(
                f"{self.path}: a number in record {self._records} (counted from 0) of the "
                f"{self._what} has too many digits."
            ) from None
        except RecursionError:
            raise UserError(f"{self.path}: nested too deeply to be a {self._what}.") from None

    def _elements(self, stream: BinaryIO) -> Iterator[Element]:
        opening = self._opening(stream)
        keyed = opening == "{"
        separator = _NEXT_MEMBER if keyed else _NEXT_ELEMENT
        while True:
            text, place, decode = self._text, self._place, self._decode
            # The loop that nearly all time goes into; what it can't read goes the long way below.
            while self._records and (before := separator.match(text, place)):
                start = before.end()
                try:
                    value, end = decode(text, start)
                except json.JSONDecodeError:
                    break
                if end == len(text):
                    break
                self._records += 1
                self._place = place = end
                yield before[1] if keyed else None, value, text[start:end]
            try:
                element, end = self._element(keyed)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_go_on(error):
                    raise self._fault(error, keyed) from None
                self._read_on(stream, keyed)
                continue
            if end == len(self._text) and not self._ended:
                self._read_on(stream, keyed)  # a number may go on
                continue
            self._place = end
            if element is None:
                break
            self._records += 1
            yield element
        self._refuse_more(stream)
        if not self._records:
            raise self._other_shape("empty")

    def _opening(self, stream: BinaryIO) -> str:
        """Go past the bracket that the file begins with, and return it."""
        while not (self._text or self._ended):
            self._read_on(stream, False)
        if self._text.startswith("\ufeff"):
            self._text, self._bytes_before_text = self._text[1:], len(codecs.BOM_UTF8)
        self._skip_blanks(stream)
        if self._place == len(self._text):
            raise UserError(f"{self.path}: the {self._what} is empty; fetch or write it again.")
        opening = self._text[self._place]
        if opening in "{[":
            self._place += 1
            return opening
        while not self._ended and len(self._text) <= LONGEST_RECORD:
            self._read_on(stream, False)
        try:
            value, self._place = self._decode(self._text, self._place)
        except json.JSONDecodeError as error:
            raise self._fault(error, False) from None
        self._refuse_more(stream)
        raise self._other_shape(kind(value))

    def _element(self, keyed: bool) -> tuple[Element | None, int]:
        """The next element, None at the closing bracket, and where it ends in the text."""
        text = self._text
        place = _after_blanks(text, self._place)
        if text.startswith("}" if keyed else "]", place):
            return None, place + 1
        if self._records:
            place = _after_blanks(text, _after(",", text, place, "Expecting ',' delimiter"))
        name = None
        if keyed:
            _after('"', text, place, "Expecting a name in double quotes")
            name, place = self._decode(text, place)
            place = _after(":", text, _after_blanks(text, place), "Expecting ':' delimiter")
            place = _after_blanks(text, place)
        value, end = self._decode(text, place)
        return (name, value, text[place:end]), end

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the text might be sound, but for its end that isn't read yet."""
        return error.msg.startswith("Unterminated") or (
            error.pos >= len(self._text) - LONGEST_TOKEN
        )

    def _read_on(self, stream: BinaryIO, keyed: bool) -> None:
        """Drop what has been read and append the next chunk."""
        rest = self._text[self._place :]
        if len(rest) > LONGEST_RECORD:
            raise UserError(
                f"{self.path}: {self._record(keyed)} is longer than {LONGEST_RECORD // 2**20} MB; "
                f"expected {self._expected}."
            )
        self._bytes_before_text = self._byte(self._place)
        chunk = stream.read(max(CHUNK, len(rest)))
        undecoded = len(self._decoder.getstate()[0])
        self._ended = not chunk
        try:
            more = self._decoder.decode(chunk)
        except UnicodeDecodeError as error:
            place = self.bytes_read - undecoded + error.start
            raise UserError(f"{self.path}: not a text file (byte {place} isn't UTF-8).") from None
        if self._ended and undecoded:
            more = "\ufffd"  # a character that breaks off: nothing that JSON takes for an end
        self.bytes_read += len(chunk)
        self.digest.update(chunk)
        self._text, self._place = rest + more, 0

    def _skip_blanks(self, stream: BinaryIO) -> None:
        while (place := _after_blanks(self._text, self._place)) == len(self._text):
            self._place = place
            if self._ended:
                return
            self._read_on(stream, False)
        self._place = place

    def _refuse_more(self, stream: BinaryIO) -> None:
        self._skip_blanks(stream)
        if self._place < len(self._text):
            raise self._fault(
                json.JSONDecodeError("text after its end", self._text, self._place), False
            )

    def _byte(self, place: int) -> int:
        return self._bytes_before_text + len(self._text[:place].encode())

    def _record(self, keyed: bool) -> str:
        """The record that the window begins with, for messages."""
        start = _after_blanks(self._text, self._place)
        if self._text.startswith(",", start):
            start = _after_blanks(self._text, start + 1)
        name = re.match(r'"([^"\\]{1,40})"', self._text[start : start + 50]) if keyed else None
        named = f", question {name[1]}," if name else ""
        return f"record {self._records} (counted from 0){named} that begins at byte " + str(
            self._byte(start)
        )

    def _fault(self, error: json.JSONDecodeError, keyed: bool) -> UserError:
        rest = self._text[error.pos :].strip(" \t\n\r")
        cut_off = (
            error.msg.startswith("Unterminated")
            or any(word.startswith(rest) for word in _LITERALS)
            or (error.msg.startswith("Invalid \\u") and len(rest) < len("\\u1234"))
        )
        place = len(self._text) if cut_off else error.pos
        what = "breaks off" if cut_off else f"isn't JSON ({error.msg})"
        return UserError(
            f"{self.path}: the {self._what} {what} at byte {self._byte(place)}, in "
            f"{self._record(keyed)}; fetch or write it again."
        )

    def _other_shape(self, found: str) -> UserError:
        return UserError(f"{self.path}: expected {self._expected}, but the file is {found}.")


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return found.end() if found else place


def _after(character: str, text: str, place: int, otherwise: str) -> int:
    if not text.startswith(character, place):
        raise json.JSONDecodeError(otherwise, text, place)
    return place + 1


def kind(value: Any) -> str:
    """What a JSON value is, for messages: "an object", "a list", ..."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "nothing (null)" if value is None else "a number")
