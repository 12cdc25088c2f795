"""A split's questions as columns of a memory-mapped file."""

import json
import mmap
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.datasets.samples import SampleSize

SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("structural", pa.string()),
        ("semantic", pa.string()),
        ("detailed", pa.string()),
    ]
)
"""Columns of a question table; ``answer`` and the three types may be null."""

CODES = ("question_code", "record")
"""A store's columns after ``form``: integers below its number of rows."""
CONTENTS = b"contents"
"""Schema metadata key of the question files' names and digests."""
LEADING_WORDS_OF_A_FORM = 3
UNBALANCED = r'"isBalanced"\s*:\s*false'
"""Pattern in a record's JSON text; its quotes keep it from matching inside JSON strings."""

Codes = npt.NDArray[np.int32]
Texts: TypeAlias = pa.Array | pa.ChunkedArray


class QuestionStore:
    """The two opened Arrow files of converted question files.

    Args:
        questions: rows with ``SCHEMA`` (repeated values dictionary-encoded), ``question_code``,
            ``form`` and ``record``, the row's index in ``records``.
        records: original records, compressed and read on demand.

    Both are buffers, or files that are memory-mapped and pickled as paths. Raises UserError for a
    missing file, and pyarrow.ArrowInvalid for a damaged one.
    """

    def __init__(self, questions: Path | pa.Buffer, records: Path | pa.Buffer) -> None:
        self._questions = questions
        self._records = records
        self._mapped, buffer = _mapped(questions)
        # Mapped now, because converting a later version of the question files removes it.
        self._records_buffer = _mapped(records)[1]
        self.table: pa.Table = pa.ipc.open_file(buffer).read_all()
        self._batch: tuple[int, pa.Array] = (-1, pa.array([], pa.string()))

    def __reduce__(self) -> tuple[Any, ...]:
        return QuestionStore, (self._questions, self._records)

    def check(self) -> None:
        """Raise pyarrow.ArrowException for offsets and codes out of range.

        Arrow doesn't check mapped files; a flipped bit could crash the process.
        """
        self.table.validate(full=True)
        if self.table.schema.names != [*SCHEMA.names, "form", *CODES]:
            raise pa.ArrowInvalid("not the columns of a store")
        for name in CODES:
            ends = pc.min_max(self.table[name])
            if len(self.table) and not 0 <= ends["min"].as_py() <= ends["max"].as_py() < len(self):
                raise pa.ArrowInvalid(f"a {name} out of range")
        self.release()

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def contents(self) -> bytes:
        """Identifier of the question files' contents, independent of machine and time."""
        contents: bytes = self.table.schema.metadata[CONTENTS]
        return contents

    def record(self, place: int) -> dict[str, Any]:
        """The record at ``place``. Sequential reads are fastest."""
        try:
            size = self._records_a_batch
            if self._batch[0] != place // size:
                batch = self._reader.get_batch(place // size)
                batch.validate(full=True)
                self._batch = place // size, batch.column(0)
            record: dict[str, Any] = json.loads(self._batch[1][place % size].as_py())
        except (pa.ArrowException, OSError, ValueError, IndexError, ZeroDivisionError) as error:
            raise UserError(
                f"{self._records}: the converted questions are damaged ({shortened(str(error))}). "
                "Remove the file; it will be recreated."
            ) from None
        return record

    def matching(self, pattern: str) -> npt.NDArray[np.bool_]:
        """Whether each record's JSON text matches a regular expression, bool [records]."""
        batches = (self._reader.get_batch(n) for n in range(self._reader.num_record_batches))
        return np.concatenate(
            [np.asarray(pc.match_substring_regex(batch.column(0), pattern)) for batch in batches]
        )

    def extracted(self, pattern: str) -> pa.Array:
        """The group ``text`` of a regular expression in each record's JSON text; null if absent."""
        batches = (self._reader.get_batch(n) for n in range(self._reader.num_record_batches))
        found = [pc.extract_regex(batch.column(0), pattern).field("text") for batch in batches]
        return pa.concat_arrays([pc.if_else(pc.equal(each, ""), None, each) for each in found])

    def release(self) -> None:
        """Unmap the pages read so far; they stay in the file cache.

        Otherwise random reads would gradually map the whole file.
        """
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(self._records_buffer)

    @cached_property
    def _records_a_batch(self) -> int:
        """Records per batch; the last one may be smaller."""
        return self._reader.get_batch(0).num_rows


def _mapped(place: Path | pa.Buffer) -> tuple[mmap.mmap | None, pa.Buffer]:
    if not isinstance(place, Path):
        return None, place
    try:
        with place.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(
            f"{place}: the converted questions are gone, probably because the question files "
            "changed. Start the run again."
        ) from None
    except ValueError:  # raised for empty files
        raise pa.ArrowInvalid(f"{place} is empty") from None
    return mapped, pa.py_buffer(mapped)


@dataclass(frozen=True)
class QuestionTable:
    """Questions of one split, one per row, in file order.

    Attributes:
        data: columns of ``SCHEMA``, as texts or dictionary-encoded (all chunks with one
            dictionary). A store's additional columns are used if present.
        store: source of the rows; None for a table in memory.

    Rows are addressed by number. A table with a store is pickled as path and row numbers, so loader
    workers, forked or spawned, share its pages.
    """

    data: pa.Table
    store: QuestionStore | None = None

    @classmethod
    def of_store(cls, store: QuestionStore) -> "QuestionTable":
        """All questions of a store."""
        return cls(store.table, store)

    def __len__(self) -> int:
        return self.data.num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        if self.store is None:
            return QuestionTable, (self.data,)
        whole = len(self) == self.store.table.num_rows
        return _of_records, (self.store, None if whole else self.codes("record"))

    @property
    def columns(self) -> pa.Table:
        """The columns of ``SCHEMA``."""
        return self.data.select(SCHEMA.names)

    def text(self, column: str, row: int) -> str | None:
        """The value of ``column`` in ``row``."""
        value: str | None = self.data[column][int(row)].as_py()
        return value

    def structure(self, row: int) -> dict[str, Any]:
        """Original record of ``row``.

        GQA's have ``semantic`` (the program), ``semanticStr``, ``entailed``, ``equivalent``,
        ``annotations``, ``types``, ``groups``, ``fullAnswer`` and ``isBalanced`` besides the
        table's columns; other data may lack any of them.
        """
        return self._stored().record(int(self.codes("record")[row]))

    def balanced(self) -> npt.NDArray[np.int64]:
        """Rows of the balanced subset: all without ``"isBalanced": false``."""
        outside = self._stored().matching(UNBALANCED)
        return np.flatnonzero(~outside[self.codes("record")])

    def extracted(self, pattern: str) -> pa.Array | None:
        """The group ``text`` of a regular expression in each row's record, as JSON text.

        Null where it doesn't match; None for a table without records.
        """
        if self.store is None:
            return None
        return self.store.extracted(pattern).take(pa.array(self.codes("record")))

    def texts(self, rows: npt.ArrayLike, *columns: str) -> list[list[Any]]:
        """Values (text or None) of each of ``columns`` in these rows, in this order."""
        return [column.to_pylist() for column in self._taken(list(columns), rows).columns]

    def take(self, rows: npt.ArrayLike) -> "QuestionTable":
        """A table of these rows, in this order."""
        return replace(self, data=self._taken(self.data.column_names, rows))

    def _taken(self, columns: list[str], rows: npt.ArrayLike) -> pa.Table:
        places = np.asarray(rows, dtype=np.int64)
        # Arrow's take would first concatenate all chunks of a text column.
        chunk = np.searchsorted(self._starts, places, side="right") - 1
        by_chunk = np.argsort(chunk, kind="stable")
        used, first = np.unique(chunk[by_chunk], return_index=True)
        parts = []
        for each, members in zip(used, np.split(by_chunk, first)[1:], strict=True):
            rows_of_chunk = pa.array(places[members] - self._starts[each])
            parts.append(self._chunks[each].select(columns).take(rows_of_chunk))
            self._release()
        schema = pa.schema([self.data.schema.field(name) for name in columns])
        taken = pa.Table.from_batches(parts, schema=schema)
        if (np.diff(by_chunk) < 0).any():
            back = np.empty_like(by_chunk)
            back[by_chunk] = np.arange(len(by_chunk))
            taken = taken.combine_chunks().take(pa.array(back))
        return taken

    def sample(self, size: SampleSize | int | float | None, seed: int) -> "QuestionTable":
        """A seeded sample of the rows, in file order; all rows if there are fewer.

        GQA's files are sorted by image, so the first rows would be of related images. A number
        means ``SampleSize(number)``.
        """
        wanted = SampleSize.of(size)
        if wanted is None:
            return self
        rows = wanted.rows(self.codes("image_id"), seed)
        return self if len(rows) == len(self) else self.take(rows)

    def encoded(self, column: str) -> tuple[Codes, list[str]]:
        """:meth:`codes` of ``column``, and the text of each code.

        Some codes may be absent from this table's rows.
        """
        return self.codes(column), _dictionary(self._coded(column))

    def codes(self, column: str) -> Codes:
        """``column`` as integers [rows]: equal values have equal codes, null is -1.

        All calls share one read-only array.
        """
        if column not in self._codes:
            self._codes[column] = _joined(self._coded(column))
            self._release()
        return self._codes[column]

    def values(self, column: str) -> list[str]:
        """The distinct values of ``column``, without null."""
        coded = self._coded(column)
        values = _dictionary(coded)
        present = np.zeros(len(values), bool)
        for chunk in coded.chunks:
            present[np.asarray(chunk.indices.drop_null())] = True
        self._release()
        return [values[place] for place in np.flatnonzero(present)]

    def question_codes(self) -> Codes:
        """Integers [rows], equal for questions that are equal up to case and spaces.

        In a store they come from a 64-bit hash. Among 14 million questions a collision occurs once
        in about 180,000 data sets, and only excludes a mismatched question for one image.
        """
        return self.codes("question_code")

    def forms(self) -> pa.ChunkedArray:
        """Form of each question [rows]: GQA's detailed type, if any, and its first three words.

        Questions of one form ask for the same kind of answer ("directOf what color is"), so the
        form alone gives a baseline, and hard mismatched questions.
        """
        return self._column("form")

    def form_codes(self) -> Codes:
        """Form of each question as integers [rows]."""
        return self.codes("form")

    def _stored(self) -> QuestionStore:
        if self.store is None:
            raise LookupError("this table was not read from question files")
        return self.store

    def _column(self, name: str) -> pa.ChunkedArray:
        if name in self.data.column_names:
            return self.data[name]
        questions = plain(self.data["question"])  # for a table without a store
        return questions if name == "question_code" else forms(questions, self.data["detailed"])

    def _coded(self, name: str) -> pa.ChunkedArray:
        column = self._column(name)
        coded = pa.types.is_dictionary(column.type) or pa.types.is_int32(column.type)
        return column if coded else column.dictionary_encode()

    def _release(self) -> None:
        if self.store is not None:
            self.store.release()

    @cached_property
    def _codes(self) -> dict[str, Codes]:
        return {}

    @cached_property
    def _chunks(self) -> list[pa.RecordBatch]:
        return self.data.to_batches()

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """First row number of each chunk."""
        return np.cumsum([0, *(chunk.num_rows for chunk in self._chunks[:-1])], dtype=np.int64)


def _of_records(store: QuestionStore, records: Codes | None) -> QuestionTable:
    table = QuestionTable.of_store(store)
    return table if records is None else table.take(records)


def plain(questions: Texts) -> Texts:
    """Texts in lower case with normalized spaces."""
    single_spaced = pc.replace_substring_regex(pc.utf8_lower(questions), r"\s+", " ")
    return pc.utf8_trim_whitespace(single_spaced)


def forms(plain_questions: Texts, detailed: Texts) -> Texts:
    """Forms of plain questions (see :meth:`QuestionTable.forms`) with these detailed types."""
    words = pc.split_pattern(plain_questions, " ")
    leading = pc.binary_join(pc.list_slice(words, 0, LEADING_WORDS_OF_A_FORM), " ")
    return pc.binary_join_element_wise(pc.coalesce(detailed, ""), leading, " ")


def _dictionary(coded: pa.ChunkedArray) -> list[str]:
    texts: list[str] = coded.chunk(0).dictionary.to_pylist() if coded.num_chunks else []
    return texts


def _joined(coded: pa.ChunkedArray) -> Codes:
    joined = np.empty(len(coded), np.int32)
    end = 0
    for chunk in coded.chunks:
        codes = chunk.indices if pa.types.is_dictionary(chunk.type) else chunk
        start, end = end, end + len(chunk)
        joined[start:end] = pc.fill_null(codes, -1) if codes.null_count else codes
    joined.flags.writeable = False
    return joined
