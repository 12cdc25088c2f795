"""Question files in GQA's formats, read into one columnar table.

Read are GQA's own files (questions1.2: a JSON object keyed by question id), a folder of such files
(``train_all_questions/train_all_questions_*.json``) and LAVIS's form (a list of records with
``image`` and ``question_id``). Ids stay strings: GQA's begin with zeros ("02930152").
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lavis_ext.errors import UserError

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
"""Columns of a question table; ``answer`` and the three types are null where a record has none."""

LEADING_WORDS_OF_A_FORM = 3

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QuestionTable:
    """The questions of one split, one row each, in the order of their files.

    ``columns`` has the schema ``SCHEMA``. Rows are addressed by number; Arrow's buffers are shared
    with forked loader workers.
    """

    columns: pa.Table

    def __len__(self) -> int:
        return self.columns.num_rows

    def text(self, column: str, row: int) -> str | None:
        """The value of ``column`` in ``row``."""
        value: str | None = self.columns[column][int(row)].as_py()
        return value

    def take(self, rows: npt.ArrayLike) -> "QuestionTable":
        """A table of these rows, in this order."""
        return QuestionTable(self.columns.take(pa.array(np.asarray(rows))).combine_chunks())

    def sample(self, size: int | None, seed: int) -> "QuestionTable":
        """``size`` rows drawn without replacement, in file order; all of them if there are fewer.

        GQA's files are sorted by image, so a subset that begins at the top would see few images.
        """
        if size is None or size >= len(self):
            return self
        rows = np.random.default_rng(seed).choice(len(self), size=size, replace=False)
        return self.take(np.sort(rows))

    def codes(self, column: str) -> Codes:
        """``column`` as integers [rows]: equal values have equal codes, null is -1."""
        return _codes(self.columns[column])

    def question_codes(self) -> Codes:
        """Integers [rows], equal where the questions are, without regard to case and spaces."""
        return _codes(_plain(self.columns["question"]))

    def forms(self) -> pa.Array:
        """The form of each question [rows]: GQA's detailed type, if any, and its first three words.

        Questions of one form ask for the same kind of answer ("directOf what color is"), so the
        form alone gives a baseline and, for mismatched questions, a hard choice.
        """
        words = pc.split_pattern(_plain(self.columns["question"]), " ")
        leading = pc.binary_join(pc.list_slice(words, 0, LEADING_WORDS_OF_A_FORM), " ")
        return pc.binary_join_element_wise(pc.coalesce(self.columns["detailed"], ""), leading, " ")

    def form_codes(self) -> Codes:
        """The form of each question as integers [rows]."""
        return _codes(self.forms())


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts in lower case, with single spaces between the words alone."""
    single_spaced = pc.replace_substring_regex(pc.utf8_lower(column), r"\s+", " ")
    return pc.utf8_trim_whitespace(single_spaced)


def _codes(column: pa.ChunkedArray) -> Codes:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return np.asarray(pc.fill_null(encoded.indices, -1)).astype(np.int64)


def read_questions(source: Path) -> QuestionTable:
    """Read one question file, or every ``*.json`` of a folder of shards.

    Raises UserError naming the file and, where there is one, the record: for a file that is
    missing, empty, cut off or of another shape, a record without a question or an image, and a
    question id that stands twice.
    """
    files = sorted(source.glob("*.json"), key=_numbers_last) if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source}: the folder has no *.json files with questions.")
    table = pa.concat_tables([_read_file(file) for file in files])
    _refuse_repeated(table["question_id"], source)
    return QuestionTable(table)


def _read_file(file: Path) -> pa.Table:
    rows = list(_rows(file))
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except UnicodeEncodeError:  # half of a character, which JSON can write and UTF-8 can't
        for row in rows:
            try:
                "".join(value or "" for value in row.values()).encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{file}: question {row['question_id']!a} holds half of a character (a lone "
                    "surrogate such as \\ud83d); write the file again."
                ) from None
        raise


def _numbers_last(path: Path) -> tuple[str, int]:
    """Sorts shard_2 before shard_10."""
    match = re.search(r"(\d+)$", path.stem)
    return (path.stem[: match.start()], int(match[1])) if match else (path.stem, -1)


def _rows(file: Path) -> Iterator[dict[str, str | None]]:
    for name, record in _records(file, _load(file)):
        if not isinstance(record, dict):
            raise UserError(
                f"{file}: question {name} is {_kind(record)}, not an object with `question` and "
                "`imageId`."
            )
        types = record.get("types") or {}
        if not isinstance(types, dict):
            raise UserError(f"{file}: `types` of question {name} is {_kind(types)}, not an object.")
        yield {
            "question_id": name,
            "image_id": _image_id(record, name, file),
            "question": _required(record, "question", name, file),
            "answer": _optional(record, "answer", name, file),
            "structural": _optional(types, "structural", name, file),
            "semantic": _optional(types, "semantic", name, file),
            "detailed": _optional(types, "detailed", name, file),
        }


def _load(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: the question file can't be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text file (byte {error.start} isn't UTF-8).") from None
    if not text.strip():
        raise UserError(f"{file}: the question file is empty; fetch or write it again.")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        what = "breaks off" if cut_off else f"isn't JSON ({error.msg})"
        raise UserError(
            f"{file}: the question file {what} at line {error.lineno}, character {error.pos}; "
            "fetch or write it again."
        ) from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply to be a question file.") from None
    # Of members with the same name, json keeps the last. Looking at each member costs as much
    # again as reading the file, so it's done only where there are more records than members.
    if isinstance(content, dict) and text.count('"imageId"') > len(content):
        _refuse_repeated(
            [name for name, _ in json.loads(text, object_pairs_hook=lambda pairs: pairs)], file
        )
    return content


def _records(file: Path, content: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(content, dict) and content:
        return content.items()
    if isinstance(content, list) and content:
        return ((_listed_id(record, place, file), record) for place, record in enumerate(content))
    found = _kind(content) if not isinstance(content, dict | list) else "empty"
    raise UserError(
        f"{file}: expected GQA's object keyed by question id, or LAVIS's list of records, "
        f"but the file is {found}."
    )


def _listed_id(record: Any, place: int, file: Path) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{file}: record {place} of the list is {_kind(record)}, not an object.")
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
        raise UserError(f"{file}: question {name} has no `{key}`.")
    return value


def _optional(record: dict[str, Any], key: str, name: str, file: Path) -> str | None:
    value = record.get(key)
    if isinstance(value, list) and len(value) == 1:  # LAVIS's lists of answers
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UserError(f"{file}: `{key}` of question {name} is {_kind(value)}, not a text.")
    return str(value) if value is not None and str(value).strip() else None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "nothing (null)" if value is None else "a number")


def _refuse_repeated(ids: Sequence[str] | pa.ChunkedArray, source: Path) -> None:
    counts = pc.value_counts(ids if isinstance(ids, pa.ChunkedArray) else pa.array(ids))
    if len(counts) == len(ids):
        return
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    named = f"{', '.join(repeated[:3].to_pylist())}{', ...' if len(repeated) > 3 else ''}"
    raise UserError(
        f"{source}: {len(repeated)} question ids stand more than once ({named}); each must be of "
        "one record."
    )


QUESTION_FOLDERS: Sequence[str] = ("questions", "questions1.2", "annotations", ".")


def find_questions(root: Path, split: str, subset: str) -> Path:
    """The file or folder of shards with ``split``'s questions below ``root``, in GQA's layout.

    ``subset`` is ``balanced`` or ``all``. Raises UserError listing where it was looked for.
    """
    stem = f"{split}_{subset}_questions"
    candidates = [
        root / folder / name for folder in QUESTION_FOLDERS for name in (f"{stem}.json", stem)
    ]
    for candidate in candidates:
        if candidate.is_file() or candidate.is_dir():
            return candidate
    if not root.is_dir():
        raise UserError(
            f"datasets.gqa_fusion.root: there is no folder {root}. Give the folder that has GQA's "
            "`questions` and `images`; `run_scripts/download_gqa.sh` fetches them."
        )
    raise UserError(
        f"{root}: no {subset} questions of split '{split}'. Looked for {stem}.json and the folder "
        f"{stem} in it and in its folders {', '.join(QUESTION_FOLDERS[:-1])}."
    )
