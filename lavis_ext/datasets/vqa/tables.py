"""Tables of questions: CSV, Parquet, and folders saved by the hub's ``datasets`` library.

Parquet and Arrow files are read by pyarrow, so that library isn't needed.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lavis_ext.common.errors import UserError, listed, nearest, shortened
from lavis_ext.common.files import (
    COMPRESSED_SUFFIXES,
    DAMAGED,
    check_regular,
    encoding_of,
    is_file,
    is_folder,
    open_plain,
    parse_json,
)
from lavis_ext.config.schema import option
from lavis_ext.datasets.image_files.parquet import holds_images, row_name
from lavis_ext.datasets.pictures import image_id_of
from lavis_ext.datasets.questions.files import QuestionFiles, Row, preferred
from lavis_ext.datasets.questions.records import check_unicode, optional, required
from lavis_ext.datasets.questions.records import trained_answer as answer_of
from lavis_ext.datasets.questions.values import as_text

SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
"""Possible separators of text tables by suffix; the one with most cells in the header is taken."""
TEXTS = tuple(suffix + packed for packed in ("", *COMPRESSED_SUFFIXES) for suffix in SEPARATORS)
SUFFIXES = (*TEXTS, ".parquet", ".arrow")
"""Suffixes of tables, preferred first."""
WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0")
GAPS = ("nan", "NaN")
STATE = "state.json"
"""File that ``Dataset.save_to_disk`` writes beside its Arrow files."""
ROWS_A_BATCH = 2**12
LONGEST_CELL = 16 * 2**20


@dataclass
class Columns:
    """Names of a table's columns."""

    question_id: str | None = option(None, "Ids; null to number the rows from 0.")
    image: str = option("image", "Paths of images in the image folder.")
    question: str = option("question", "Questions.")
    answer: str | None = option(
        "answer",
        "Answers, each a text or a list of several people's (JSON in CSV); null for none.",
    )
    question_type: str | None = option(None, "Question types; null for none.")

    def wanted(self) -> dict[str, str]:
        """Required columns by option."""
        named = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {key: name for key, name in named.items() if name is not None}


class TableFile:
    """Rows of one table, with the number of bytes read and their hash.

    Iterating yields the required columns by option, and raises UserError naming the file if it
    can't be read or lacks a column.
    """

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        self.bytes_read = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._wanted = wanted

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            check_regular(self.path)
            with self.path.open("rb") as stream:
                while chunk := stream.read(2**20):
                    self.digest.update(chunk)
                    self.bytes_read += len(chunk)
            yield from self._text() if _has_suffix(self.path, TEXTS) else self._arrow()
        except DAMAGED as error:
            raise UserError(
                f"{self.path}: the compressed table is damaged or cut off ({error}); download or "
                "write it again."
            ) from None
        except OSError as error:
            reason = error.strerror or shortened(str(error), 120)
            raise UserError(f"{self.path}: the table can't be read ({reason}).") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: not a text file (byte {error.start} isn't {error.encoding.upper()})."
            ) from None
        except (csv.Error, pa.ArrowException) as error:
            raise UserError(
                f"{self.path}: not a valid table ({shortened(str(error), 120)}); write it again."
            ) from None

    def _text(self) -> Iterator[dict[str, Any]]:
        floats = self._float_columns()
        for line, cells in self._cells():
            found: dict[str, Any] = {
                key: _trimmed(cell) if key in floats else cell for key, cell in cells.items()
            }
            if found.get("answer", "").startswith("["):
                found["answer"] = self._listed(found["answer"], line)
            yield found

    def _cells(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each row's line number, and its required cells by option."""
        with self._opened() as rows:
            names: list[str] = next(rows, [])
            self._check(names)
            places = {key: names.index(name) for key, name in self._wanted.items()}
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise UserError(
                        f"{self.path}: line {rows.line_num} has {len(cells)} cells, but the "
                        f"table {len(names)} columns."
                    )
                yield rows.line_num, {key: cells[place] for key, place in places.items()}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """A reader of the rows, in the file's encoding and with its separator."""
        with open_plain(self.path) as file:
            encoding, mark = encoding_of(file.read(4))
        separators = SEPARATORS[next(s for s in SEPARATORS if s in self.path.name.lower())]
        limit = csv.field_size_limit(LONGEST_CELL)
        try:
            with (
                open_plain(self.path) as file,
                io.TextIOWrapper(file, encoding=encoding, newline="") as stream,
            ):
                file.read(mark)
                header = stream.readline()
                separator = max(separators, key=header.count)
                yield csv.reader(chain([header], stream), delimiter=separator, strict=True)
        finally:
            csv.field_size_limit(limit)

    def _float_columns(self) -> set[str]:
        """Columns of whole floats ("3.0") and gaps: integers with gaps, as pandas writes them."""
        possible, numbers = set(self._wanted), set[str]()
        for _, cells in self._cells():
            for key in list(possible):
                if WHOLE_FLOAT.fullmatch(cells[key]):
                    numbers.add(key)
                elif cells[key] not in ("", *GAPS):
                    possible.remove(key)
            if not possible:
                break
        return possible & numbers

    def _listed(self, cell: str, line: int) -> list[Any]:
        """Answers in a cell. Raises UserError for anything but a JSON list."""
        try:
            found = parse_json(cell)
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise UserError(
                f"{self.path}: the answer in line {line} begins with [ but isn't a JSON list "
                f'({shortened(cell)}); write several answers as ["red", "blue"], and a text that '
                'begins with [ as ["[text"].'
            )
        return found

    def _arrow(self) -> Iterator[dict[str, Any]]:
        if self.path.suffix.lower() == ".parquet":
            with pq.ParquetFile(self.path) as file:
                self._check(file.schema_arrow.names)
                image = self._wanted.get("image")
                pictures = image is not None and holds_images(file.schema_arrow.field(image).type)
                wanted = {k: n for k, n in self._wanted.items() if not pictures or k != "image"}
                names = list(dict.fromkeys(wanted.values()))
                row = 0
                for batch in file.iter_batches(ROWS_A_BATCH, columns=names):
                    for record in self._of_batch(batch, wanted):
                        if pictures:  # read when they are needed, by this name
                            record["image"] = row_name(str(self.path), row)
                        yield record
                        row += 1
            return
        with pa.OSFile(str(self.path)) as source:
            reader = pa.ipc.open_stream(source)
            self._check(reader.schema.names)
            for batch in reader:
                batch.validate(full=True)
                yield from self._of_batch(batch, self._wanted)

    def _of_batch(
        self, batch: pa.RecordBatch, wanted: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        columns = [batch.column(name).to_pylist() for name in wanted.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip(wanted, values, strict=True))

    def _check(self, names: Sequence[str]) -> None:
        for key, name in self._wanted.items():
            if names.count(name) != 1:
                found = "more than one column" if name in names else "no column"
                raise UserError(
                    f"{self.path}: {found} '{name}' (columns.{key}).{nearest(name, names)} It has: "
                    f"{', '.join(map(shortened, names[:20])) or 'none'}."
                )


@dataclass(frozen=True)
class TableFiles(QuestionFiles):
    """Tables of one split."""

    columns: Columns = field(default_factory=Columns)

    @property
    def options(self) -> str:
        """Names of the columns."""
        return repr(self.columns)

    def read(self) -> tuple[Iterator[Row], Sequence[TableFile]]:
        """Rows of the tables, and their files."""
        readers = [TableFile(path, self.columns.wanted()) for path in self.files]
        return self._rows(readers), readers

    def _rows(self, readers: Sequence[TableFile]) -> Iterator[Row]:
        numbered = enumerate(chain.from_iterable(_with_file(each) for each in readers))
        for place, (path, record) in numbered:
            name = str(place)
            if self.columns.question_id is not None:
                name = required(record, "question_id", f"in row {place}", path)
            if isinstance(record["image"], dict | bytes):
                raise UserError(
                    f"{path}: the column '{self.columns.image}' has pictures, not paths; save "
                    "them in a folder and put their paths in a column."
                )
            image = required(record, "image", name, path)
            kind_of_question = optional(record, "question_type", name, path)
            record["question_id"] = name
            row = (
                name,
                image_id_of(image),
                required(record, "question", name, path),
                answer_of(record, name, path),
                None,
                None,
                kind_of_question,
                json.dumps(record, default=as_text),
            )
            check_unicode(row, path)
            yield row


def find_tables(named: Path, split: str) -> tuple[Path, ...]:
    """Find the tables of a split: ``named`` itself, or those in a folder.

    A folder may be saved by ``datasets`` (``save_to_disk``), have a hub repository's layout
    (``data/train-00000-of-00002.parquet``), or have files such as ``train.csv``; of several, the
    first in the order of ``SUFFIXES`` are used, with a warning. Raises UserError if there is none.
    """
    if is_file(named):
        _check_suffix(named)
        return (named,)
    if not is_folder(named):
        raise UserError(f"{named}: there is no such table or folder.")
    for folder in (named / split, named):
        if is_file(folder / STATE):
            return _saved(folder)
    patterns = [f"{split}{{}}", f"{split}-*-of-*{{}}", f"data/{split}-*-of-*{{}}", f"{split}/*{{}}"]
    tables = [
        tuple(found)
        for suffix in SUFFIXES
        for pattern in patterns
        if (found := sorted(named.glob(pattern.format(suffix))))
    ]
    if tables:
        return preferred(tables, f"datasets.question_table.questions.{split}")
    raise UserError(
        f"{named}: no table of split '{split}'. Looked for {split}.csv, {split}.parquet, "
        f"{split}-*-of-*.parquet in it and in data/, and for files saved by `datasets` "
        f"({split}/{STATE})."
    )


def _saved(folder: Path) -> tuple[Path, ...]:
    """Arrow files of a data set saved by ``save_to_disk``, in order."""
    path = folder / STATE
    try:
        state = parse_json(path.read_text(encoding="utf-8"))
        names = [each["filename"] for each in state["_data_files"]]
        chosen = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not saved by `datasets` ({error!r:.120}).") from None
    if chosen:
        raise UserError(
            f"{folder}: a selection of rows. Save it after flatten_indices(), so that the files "
            "have only these rows."
        )
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside or not names:
        raise UserError(f"{path}: names no files of its folder ({listed([*map(str, outside)])}).")
    return tuple(folder / name for name in names)


def _check_suffix(path: Path) -> None:
    if not _has_suffix(path, SUFFIXES):
        raise UserError(f"{path}: unknown suffix of a table; known are {', '.join(SUFFIXES)}.")


def _with_file(file: TableFile) -> Iterator[tuple[Path, dict[str, Any]]]:
    for record in file:
        yield file.path, record


def _trimmed(cell: str) -> str:
    """A float column's cell without its fraction; empty for a gap."""
    return "" if cell in GAPS else cell.removesuffix(".0")


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)
