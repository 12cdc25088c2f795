"""Convert question files to the two Arrow files of a question store.

Memory is bounded: rows are written in batches of ``ROWS_A_BATCH``. Only two 64-bit hashes per row
and the distinct images, answers, types and forms are kept. A second pass over the rows finds
repeated ids and equal questions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lavis_ext.common.errors import UserError, listed
from lavis_ext.common.grouping import grouped
from lavis_ext.datasets.questions.files import QuestionFiles, Row
from lavis_ext.datasets.questions.table import CONTENTS, SCHEMA, Codes, forms, plain

ROWS_A_BATCH = 2**15
ROWS_AT_ONCE = 2**9
"""Rows transposed at a time; a divisor of ``ROWS_A_BATCH``."""
BATCHES_A_CHUNK = 2**4
"""Batches of ``rows`` per batch of ``questions``: random access is faster with fewer chunks."""
RECORDS_A_BATCH = 2**11
"""Records per compressed block, about 2 MB, which is decompressed to read one of them."""
CODED = ("image_id", "answer", "structural", "semantic", "detailed", "form")
"""Columns with few distinct values."""
RECORDS_SCHEMA = pa.schema([("record", pa.string())])

Hashes = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Callback with the numbers of records and bytes read so far."""
Stamp = tuple[str, int, int]
"""A file's name, size in bytes and modification time in nanoseconds."""


class Place(Protocol):
    """Destination of a store's files: a folder or memory."""

    def create(self, name: str) -> pa.NativeFile:
        """Create a file for writing."""

    def open(self, name: str) -> pa.NativeFile:
        """Open a written file for reading."""


def stamps(files: Sequence[Path]) -> tuple[Stamp, ...]:
    """Sizes and times that identify the files' versions. Raises UserError for a missing file."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(
                f"{file}: the question file can't be read ({error.strerror})."
            ) from None
        found.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def convert(
    source: QuestionFiles,
    before: tuple[Stamp, ...],
    place: Place,
    progress: Progress,
) -> None:
    """Write ``questions`` and ``records`` (see ``QuestionStore``) of ``source`` to ``place``.

    A third file, ``rows``, is temporary.

    Args:
        source: the question files.
        before: the files' ``stamps``, which must not change.
        place: destination.
        progress: called after each batch.

    Raises UserError for a file that is damaged or changes during the conversion, an incomplete
    record, and a repeated question id in ``source``.
    """
    conversion = _Conversion(place)
    try:
        conversion.write_rows(source, progress)
    except UserError:
        _check_unchanged(before, source.files)  # a change may be the cause of the error
        raise
    _check_unchanged(before, source.files)
    if not conversion.rows:
        raise UserError(f"{source.named}: it has no question about an image.")
    conversion.check_unique_ids(source.named)
    conversion.write_questions()


class _Conversion:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._coders = {name: _Coder() for name in CODED}
        self._ids: list[Hashes] = []
        self._questions: list[Hashes] = []
        self._contents: list[tuple[str, str]] = []

    @property
    def rows(self) -> int:
        """Number of written rows."""
        return sum(map(len, self._ids))

    def write_rows(self, source: QuestionFiles, progress: Progress) -> None:
        """First pass: write ``rows``, with codes in the columns of ``CODED``, and ``records``."""
        rows, readers = source.read()
        # zstd's fastest level still shrinks similar records several times.
        compressed = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False)
        done = 0
        with (
            _written(self._place, "rows", _schema(pa.int32())) as row_batches,
            _written(self._place, "records", RECORDS_SCHEMA, compressed) as record_batches,
        ):
            for *columns, texts in _columns(rows):
                row_batches.write_batch(self._batch(columns))
                records = pa.record_batch([pa.array(texts, pa.string())], schema=RECORDS_SCHEMA)
                for start in range(0, len(texts), RECORDS_A_BATCH):
                    record_batches.write_batch(records.slice(start, RECORDS_A_BATCH))
                done += len(texts)
                progress(done, sum(reader.bytes_read for reader in readers))
        self._contents = [(reader.path.name, reader.digest.hexdigest()) for reader in readers]

    def _batch(self, texts: Sequence[Sequence[str | None]]) -> pa.RecordBatch:
        columns = {
            name: pa.array(column, pa.string())
            for name, column in zip(SCHEMA.names, texts, strict=True)
        }
        questions = plain(columns["question"])
        columns["form"] = forms(questions, columns["detailed"])
        self._ids.append(_hashes(texts[0]))
        self._questions.append(_hashes(questions.to_pylist()))
        for name, coder in self._coders.items():
            columns[name] = coder.encode(columns[name])
        return pa.record_batch(columns)

    def check_unique_ids(self, source: Path) -> None:
        """Raise UserError naming the repeated ids of ``rows``."""
        hashes = np.concatenate(self._ids)
        self._ids.clear()
        ordered = np.sort(hashes)
        suspected = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(suspected):
            return
        ids = []
        with self._place.open("rows") as file:
            reader = pa.ipc.open_file(file)
            rows = np.flatnonzero(np.isin(hashes, suspected))
            for number in range(reader.num_record_batches):
                here = rows[rows // ROWS_A_BATCH == number] % ROWS_A_BATCH
                ids.append(reader.get_batch(number).column("question_id").take(pa.array(here)))
        counts = pc.value_counts(pa.chunked_array(ids))
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(repeated):
            raise UserError(
                f"{source}: {len(repeated)} question ids occur more than once "
                f"({listed(repeated.to_pylist())}); ids must be unique."
            )

    def write_questions(self) -> None:
        """Second pass: write ``questions``: texts for codes, question codes, and row numbers."""
        question_codes = _codes_in_order(np.concatenate(self._questions))
        self._questions.clear()
        texts = {name: coder.texts() for name, coder in self._coders.items()}
        coded = pa.dictionary(pa.int32(), pa.string())
        schema = _schema(coded).append(pa.field("question_code", pa.int32()))
        schema = schema.append(pa.field("record", pa.int32()))
        schema = schema.with_metadata({CONTENTS: repr(self._contents)})
        done = 0
        with (
            self._place.open("rows") as file,
            _written(self._place, "questions", schema) as batches,
        ):
            reader = pa.ipc.open_file(file)
            total = reader.num_record_batches
            for first in range(0, total, BATCHES_A_CHUNK):
                numbers = range(first, min(first + BATCHES_A_CHUNK, total))
                chunk = pa.Table.from_batches(map(reader.get_batch, numbers)).combine_chunks()
                (rows,) = chunk.to_batches()
                columns = dict(zip(rows.schema.names, rows.columns, strict=True))
                for name in CODED:
                    columns[name] = pa.DictionaryArray.from_arrays(columns[name], texts[name])
                end = done + rows.num_rows
                columns["question_code"] = pa.array(question_codes[done:end])
                columns["record"] = pa.array(np.arange(done, end, dtype=np.int32))
                batches.write_batch(pa.record_batch(columns))
                done = end


class _Coder:
    """Numbers texts in the order of their first appearance."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def encode(self, column: pa.Array) -> pa.Array:
        """Codes of the texts, int32; null stays null."""
        encoded = column.dictionary_encode()
        codes = self._codes
        distinct = [codes.setdefault(text, len(codes)) for text in encoded.dictionary.to_pylist()]
        return pa.array(distinct, pa.int32()).take(encoded.indices)

    def texts(self) -> pa.Array:
        """Texts by code."""
        return pa.array(self._codes, pa.string())


def _columns(rows: Iterator[Row]) -> Iterator[list[list[str | None]]]:
    """Transpose rows to columns, ``ROWS_A_BATCH`` at a time."""
    columns: list[list[str | None]] = []
    # Keep few long-lived tuples: garbage collection of many would take a seventh of the time.
    for some in grouped(rows, ROWS_AT_ONCE):
        columns = columns or [[] for _ in some[0]]
        for column, part in zip(columns, zip(*some, strict=True), strict=True):
            column.extend(part)
        if len(columns[0]) == ROWS_A_BATCH:
            yield columns
            columns = []
    if columns:
        yield columns


def _schema(coded: pa.DataType) -> pa.Schema:
    columns = [*SCHEMA.names, "form"]
    return pa.schema([(name, coded if name in CODED else pa.string()) for name in columns])


@contextmanager
def _written(
    place: Place, name: str, schema: pa.Schema, options: pa.ipc.IpcWriteOptions | None = None
) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    with place.create(name) as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        yield writer


def _check_unchanged(before: tuple[Stamp, ...], files: Sequence[Path]) -> None:
    for file, then, now in zip(files, before, stamps(files), strict=True):
        if then != now:
            raise UserError(
                f"{file}: the question file changed while it was read; start again once it is "
                "complete."
            )


def _hashes(texts: Sequence[str | None]) -> Hashes:
    """Python's 64-bit hashes; they differ between processes, so they are never written."""
    return np.fromiter(map(hash, texts), np.int64, len(texts))


def _codes_in_order(hashes: Hashes) -> Codes:
    """Number hashes in the order of their first appearance."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int32)
    numbers[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return numbers[inverse]
