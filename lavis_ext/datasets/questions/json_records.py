"""Read a JSON file of many records in constant memory.

The records are the members of an object, the elements of a list, or one object per line ("JSON
lines"); the file may be compressed and have a byte order mark (see ``common.files.open_plain``).

GQA's file of all training questions is a JSON object of over 10 GB on one line: too large to load,
and impossible to split by lines. A window of a few MB slides over it, in which json's scanner
parses one record at a time.

None of the measured JSON libraries is as fast and as small (``python -m benchmarks.json_readers``;
1 M records of GQA's length, 836 MB, one CPU; records a CPU second, and growth of the process):

    this module, with each record's text and the file's hash   178-187 thousand     20 MB
    ijson 3.6, backend yajl2_c                                   26-27 thousand     33 MB
    orjson 3.13, whole documents only                                30 thousand  7,215 MB
    pysimdjson 7.0, whole documents only                        236-243 thousand  2,994 MB

ijson's errors name no byte or record. It rejects ``NaN`` and a byte order mark, reads a lone
surrogate as ``?``, and lacks the text of a record, which the question store keeps.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import DAMAGED, encoding_of, open_plain
from lavis_ext.datasets.questions.values import as_text, kind

CHUNK = 4 * 2**20
"""Bytes per read."""
LONGEST_RECORD = 64 * 2**20
"""Maximum characters of a record; a longer one means another file format."""
LONGEST_TOKEN = 16
"""Longer than any literal or escape, since the scanner recognizes these only when complete."""

# JSON's white space is a subset of `\s`.
_BLANKS = re.compile(r"[ \t\n\r]*")
_NEXT_ELEMENT = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_NEXT_LINE = _BLANKS
_NEXT_MEMBER = re.compile(r'[ \t\n\r]*,[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")

QUESTION_IDS = ("question_id", "questionId", "questionID", "qid", "id")
"""Keys of a question's id in records, preferred first."""
IMAGE_IDS = ("imageId", "image_id", "imageID", "image", "id")
"""Keys of an image's id."""
FIRST_RECORD = 2**20
"""Characters within which the first record must end in a file of JSON lines."""

QUESTION_FILE = "question file"
EXPECTED = "GQA's object keyed by question id, or LAVIS's list of records"

Element = tuple[str | None, Any, str]
"""The member's name (None in a list), its value, and the value's JSON text."""


class RecordFile:
    """Iterates over the members of a file's object, or the elements of its list, or its lines.

    Args:
        path: the file.
        what: kind of file, for messages.
        expected: expected format, for messages.

    Attributes:
        path: path of the file.
        bytes_read: bytes read so far, decompressed.
        digest: hash of these bytes.

    Iterating raises UserError naming the file and, if known, the record and byte (of the
    decompressed text): for an unreadable, empty, damaged or truncated file, for formats other than
    JSON, and for anything but an object, a list or lines of objects.
    """

    def __init__(
        self,
        path: Path,
        what: str = QUESTION_FILE,
        expected: str = EXPECTED,
    ) -> None:
        self.path = path
        self._what = what
        self._expected = expected
        self.bytes_read = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._encoding = "utf-8"
        self._decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = False
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._place = 0  # in the text
        self._bytes_before_text = 0
        self._ended = False
        self._records = 0

    def __iter__(self) -> Iterator[Element]:
        try:
            with open_plain(self.path) as stream:
                yield from self._elements(stream)
        except DAMAGED as error:
            raise UserError(
                f"{self.path}: the compressed {self._what} is damaged or cut off ({error}); "
                "download or write it again."
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.path}: the {self._what} can't be read ({error.strerror or error})."
            ) from None
        except ValueError:  # an integer with thousands of digits
            raise UserError(
                f"{self.path}: a number in record {self._records} (counted from 0) of the "
                f"{self._what} has too many digits."
            ) from None
        except RecursionError:
            raise UserError(f"{self.path}: nested too deeply to be a {self._what}.") from None

    def _elements(self, stream: BinaryIO) -> Iterator[Element]:
        keyed = self._opening(stream) == "{"
        yield from self._members(stream, keyed)
        self._check_end(stream)
        if not self._records:
            raise self._other_shape("empty")

    def _members(self, stream: BinaryIO, keyed: bool) -> Iterator[Element]:
        """Yield the elements after an opening bracket, and consume the closing one."""
        separator = _NEXT_MEMBER if keyed else _NEXT_LINE if self._lines else _NEXT_ELEMENT
        while True:
            text, place, decode = self._text, self._place, self._decode
            # The hot loop; everything it can't read takes the slow path below.
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
                if self._ended or not self._may_be_incomplete(error):
                    raise self._fault(error, keyed) from None
                self._read_on(stream, keyed)
                continue
            if end == len(self._text) and not self._ended:
                self._read_on(stream, keyed)  # a number may continue
                continue
            self._place = end
            if element is None:
                break
            self._records += 1
            yield element

    def _opening(self, stream: BinaryIO) -> str:
        """Consume the file's opening bracket and return it; "" for lines, which have none."""
        while not (self._text or self._ended):
            self._read_on(stream, False)
        if self._text.startswith("\ufeff"):
            mark = len("\ufeff".encode(self._encoding))
            self._text, self._bytes_before_text = self._text[1:], mark
        self._skip_blanks(stream)
        if self._place == len(self._text):
            raise UserError(f"{self.path}: the {self._what} is empty; download or write it again.")
        opening = self._text[self._place]
        if opening == "{" and self._is_of_lines(stream):
            self._lines = True
            return ""
        if opening in "{[":
            self._place += 1
            return opening
        while not self._ended and len(self._text) <= LONGEST_RECORD:
            self._read_on(stream, False)
        try:
            value, self._place = self._decode(self._text, self._place)
        except json.JSONDecodeError as error:
            raise self._fault(error, False) from None
        self._check_end(stream)
        raise self._other_shape(kind(value))

    def _is_of_lines(self, stream: BinaryIO) -> bool:
        """Whether the object that begins here is a record, not an object of records."""
        while True:
            text = self._text[: self._place + FIRST_RECORD]
            try:
                first, end = self._decode(text, self._place)
            except json.JSONDecodeError as error:
                enough = len(self._text) >= min(FIRST_RECORD, LONGEST_RECORD)
                if self._ended or enough or not self._may_be_incomplete(error):
                    return False
                self._read_on(stream, False)
                continue
            plain = {name for name, value in first.items() if isinstance(value, str | int)}
            another = self._text.startswith("{", _after_blanks(self._text, end))
            return bool(plain & {*QUESTION_IDS, *IMAGE_IDS}) or (another and bool(plain))

    def _element(self, keyed: bool) -> tuple[Element | None, int]:
        """The next element, None at the closing bracket, and its end in the text."""
        text = self._text
        place = _after_blanks(text, self._place)
        if self._lines:
            if place == len(text) and self._ended:
                return None, place
            value, end = self._decode(text, place)
            return (None, value, text[place:end]), end
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

    def _may_be_incomplete(self, error: json.JSONDecodeError) -> bool:
        """Whether unread text may be the only cause of the error."""
        return error.msg.startswith("Unterminated") or (
            error.pos >= len(self._text) - LONGEST_TOKEN
        )

    def _read_on(self, stream: BinaryIO, keyed: bool) -> None:
        """Drop the consumed text and append the next chunk."""
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
        if not self.bytes_read:
            self._encoding, _ = encoding_of(chunk)
            self._decoder = codecs.getincrementaldecoder(self._encoding)()
        try:
            more = self._decoder.decode(chunk)
        except UnicodeDecodeError as error:
            place = self.bytes_read - undecoded + error.start
            raise UserError(
                f"{self.path}: not a text file (byte {place} isn't {self._encoding.upper()})."
            ) from None
        if self._ended and undecoded:
            more = "\ufffd"  # an incomplete character; JSON doesn't accept this one
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

    def _check_end(self, stream: BinaryIO) -> None:
        self._skip_blanks(stream)
        if self._place < len(self._text):
            raise self._fault(
                json.JSONDecodeError("text after its end", self._text, self._place), False
            )

    def _byte(self, place: int) -> int:
        return self._bytes_before_text + len(self._text[:place].encode(self._encoding))

    def _record(self, keyed: bool) -> str:
        """The first record of the window, for messages."""
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
        what = "is cut off" if cut_off else f"isn't JSON ({error.msg})"
        return UserError(
            f"{self.path}: the {self._what} {what} at byte {self._byte(place)}, in "
            f"{self._record(keyed)}; download or write it again."
        )

    def _other_shape(self, found: str) -> UserError:
        return UserError(f"{self.path}: expected {self._expected}, but the file is {found}.")


def identifier(record: Any, names: Sequence[str]) -> str | None:
    """A record's id under the first of ``names`` that has a text or whole number."""
    for name in names if isinstance(record, dict) else ():
        value = record.get(name)
        if type(value) is str:  # nearly always; here a blank one is an id
            return value
        with suppress(TypeError):
            text = as_text(value)
            if text is not None and (not isinstance(value, float) or value.is_integer()):
                return text
    return None


def _after_blanks(text: str, place: int) -> int:
    found = _BLANKS.match(text, place)
    return found.end() if found else place


def _after(character: str, text: str, place: int, otherwise: str) -> int:
    if not text.startswith(character, place):
        raise json.JSONDecodeError(otherwise, text, place)
    return place + 1
