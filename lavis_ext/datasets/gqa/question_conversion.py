"""From question files to the two Arrow files of a question store.

Memory stays bounded: rows leave it in batches of ``ROWS_A_BATCH``, and what is kept for all of them
is two hashes of 64 bits, the distinct images, answers, types and forms. What is known only at the
end, that no id stands twice and which questions are equal, takes a second pass over the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.gqa.json_records import RecordFile
from lavis_ext.datasets.gqa.question_records import Row, read_rows
from lavis_ext.datasets.gqa.question_table import CONTENTS, SCHEMA, Codes, forms, plain

ROWS_A_BATCH = 2**15
ROWS_AT_ONCE = 2**9
"""A divisor of ``ROWS_A_BATCH``."""
BATCHES_A_CHUNK = 2**4
"""Batches of ``rows`` in one of ``questions``: rows from all over are quicker from fewer chunks."""
RECORDS_A_BATCH = 2**11
"""Records that are compressed together, and decompressed for one of them: some 2 MB."""
CODED = ("image_id", "answer", "structural", "semantic", "detailed", "form")
"""Columns of few distinct values."""
RECORDS_SCHEMA = pa.schema([("record", pa.string())])

Hashes = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with the records and the bytes that have been read."""
Stamp = tuple[str, int, int]
"""A file's name, its size in bytes and the time of its last change in nanoseconds."""


class Place(Protocol):
    """Where the files of a store are written: a folder, or memory."""

    def create(self, name: str) -> pa.NativeFile:
        """A new file to write to."""

    def open(self, name: str) -> pa.NativeFile:
        """A file that has been written, to read from."""


def stamps(files: Sequence[Path]) -> tuple[Stamp, ...]:
    """What tells these files from later states of them. Raises UserError for one that is gone."""
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
    files: Sequence[Path],
    source: Path,
    before: tuple[Stamp, ...],
    place: Place,
    progress: Progress,
) -> None:
    """Write ``questions`` and ``records`` (see ``QuestionStore``) of these files to ``place``.

    A third file, ``rows``, is of no use afterwards.

    Args:
        files: the question files, in order.
        source: one of them or their folder, for messages.
        before: the files' ``stamps`` as they must stay.
        place: where to write.
        progress: called after each batch.

    Raises UserError for a file that is damaged or changes meanwhile, a record without what a row
    needs, and a question id that stands twice in ``source``.
    """
    conversion = _Conversion(place)
    try:
        conversion.write_rows(files, progress)
    except UserError:
        _refuse_changed(before, files)  # else what is wrong may never have stood in the file
        raise
    _refuse_changed(before, files)
    conversion.refuse_repeated(source)
    conversion.write_questions()


class _Conversion:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._coders = {name: _Coder() for name in CODED}
        self._ids: list[Hashes] = []
        self._questions: list[Hashes] = []
        self._contents: list[tuple[str, str]] = []

    def write_rows(self, files: Sequence[Path], progress: Progress) -> None:
        """The first pass: ``rows``, with codes for what has few values, and ``records``."""
        readers = [RecordFile(path) for path in files]
        rows = chain.from_iterable(map(read_rows, readers))
        # The fastest of zstd's levels: records are alike, and come out several times smaller.
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

    def refuse_repeated(self, source: Path) -> None:
        """Raise UserError naming the ids that stand more than once in ``rows``."""
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
                f"{source}: {len(repeated)} question ids stand more than once "
                f"({listed(repeated.to_pylist())}); each must be of one record."
            )

    def write_questions(self) -> None:
        """The second pass: ``rows`` with the texts of their codes, equal questions, and numbers."""
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
        """The texts' codes, int32; null stays null."""
        encoded = column.dictionary_encode()
        codes = self._codes
        distinct = [codes.setdefault(text, len(codes)) for text in encoded.dictionary.to_pylist()]
        return pa.array(distinct, pa.int32()).take(encoded.indices)

    def texts(self) -> pa.Array:
        """The texts by code."""
        return pa.array(self._codes, pa.string())


def _columns(rows: Iterator[Row]) -> Iterator[list[list[str | None]]]:
    """The rows as columns, ``ROWS_A_BATCH`` at a time."""
    columns: list[list[str | None]] = []
    # Tuples that live on keep Python's collector of cycles busy, for a seventh of the time; few do.
    while some := list(islice(rows, ROWS_AT_ONCE)):
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


def _refuse_changed(before: tuple[Stamp, ...], files: Sequence[Path]) -> None:
    for file, then, now in zip(files, before, stamps(files), strict=True):
        if then != now:
            raise UserError(
                f"{file}: the question file changed while it was read; start again once it is "
                "complete."
            )


def _hashes(texts: Sequence[str | None]) -> Hashes:
    """Python's hash of 64 bits; another run gives others, so they never leave the conversion."""
    return np.fromiter(map(hash, texts), np.int64, len(texts))


def _codes_in_order(hashes: Hashes) -> Codes:
    """Equal numbers for equal hashes, in the order of their first appearance."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int32)
    numbers[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return numbers[inverse]
