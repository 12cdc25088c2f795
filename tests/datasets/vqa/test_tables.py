"""Tables as pandas, Excel and databases write them."""

import bz2
import gzip
import lzma
import shutil
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.questions.answers import answers_in
from lavis_ext.datasets.questions.store import open_store
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.vqa.builder import QuestionTableBuilder
from lavis_ext.datasets.vqa.tables import Columns, TableFiles, find_tables

NAN = float("nan")
COLUMNS = Columns(question_id="id")


def read(path: Path, columns: Columns = COLUMNS) -> QuestionTable:
    return QuestionTable.of_store(open_store(TableFiles(path, (path,), columns)))


def rows(path: Path) -> list[tuple[str | None, ...]]:
    table = read(path)
    names = ("question_id", "image_id", "question", "answer")
    return list(zip(*table.texts(range(len(table)), *names), strict=True))


def parquet(folder: Path, **columns: list[Any]) -> Path:
    given = {"id": [1, 2], "image": ["a.jpg", "b.jpg"], "question": ["What?", "Who?"]}
    pq.write_table(pa.table(given | {"answer": ["x", "y"]} | columns), folder / "t.parquet")
    return folder / "t.parquet"


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join(("id,image,question,answer", *lines)) + "\n", encoding="utf-8")
    return path


def test_parquet_integers_with_gaps_are_no_floats(tmp_path: Path) -> None:
    """pandas makes floats and NaN of a column of integers in which values are missing."""
    path = parquet(tmp_path, id=[7.0, 8.0], image=[12.0, 13.0], answer=[3.0, NAN])
    assert rows(path) == [("7", "12", "What?", "3"), ("8", "13", "Who?", None)]
    assert answers_in(read(path).structure(0)) == ["3"]
    assert answers_in(read(path).structure(1)) == []
    assert [row[3] for row in rows(parquet(tmp_path, answer=[0.5, None]))] == ["0.5", None]
    assert [row[3] for row in rows(parquet(tmp_path, answer=[[1.0, 1.0], [2.5]]))] == ["1", "2.5"]
    path = parquet(tmp_path, id=[Decimal("7.00"), Decimal("8.00")], answer=[Decimal("0.5"), None])
    assert [(row[0], row[3]) for row in rows(path)] == [("7", "0.5"), ("8", None)]


def test_csv_columns_of_integers_with_gaps_are_no_floats(tmp_path: Path) -> None:
    found = rows(csv(tmp_path, "7.0,12.0,What?,3.0", "8.0,13.0,Who?,", "9.0,14.0,Why?,NaN"))
    assert found == [
        ("7", "12", "What?", "3"),
        ("8", "13", "Who?", None),
        ("9", "14", "Why?", None),
    ]


def test_a_csv_column_with_other_texts_stays_as_it_is(tmp_path: Path) -> None:
    found = rows(csv(tmp_path, "1.0,a.jpg,a?,3.0", "1.1,2.0,b?,nan", "2.0,3.0,c?,red"))
    assert found == [
        ("1.0", "a", "a?", "3.0"),
        ("1.1", "2.0", "b?", "nan"),
        ("2.0", "3.0", "c?", "red"),
    ]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": [1.0, NAN]}, "question in row 1 has no `question_id`"),
        ({"id": [1e17, 2e17]}, "is a float too large to be exact"),
        ({"id": [b"1", b"2"]}, "`question_id` of question in row 0 is bytes, not a string"),
        ({"id": [True, False]}, "is a boolean, not a string"),
        ({"question": [b"What?", b"Who?"]}, "`question` of question 1 is bytes, not a string"),
        ({"answer": [b"x", b"y"]}, "`answer` of question 1 is bytes, not a text or a list"),
        ({"answer": [date(2020, 1, 1)] * 2}, "is a date, not a text or a list of texts"),
        ({"answer": [float("inf"), 1.0]}, "is an infinite number, not a text"),
        ({"answer": [[1.0, NAN], [2.0]]}, "`answer` of question 1 is NaN, not a text"),
    ],
)
def test_values_of_other_types_are_named(
    columns: dict[str, list[Any]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        rows(parquet(tmp_path, **columns))


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ('"[1e999, NaN]"', "`answer` of question 1 is an infinite number"),
        ('"[""red"", NaN]"', "`answer` of question 1 is NaN"),
        ("[red]", r"answer in line 2 begins with \[ but isn't a JSON list \(\[red\]\)"),
        ('"[""red"", ""blue"""', r"line 2 begins with \[ but"),
        ("\"['red', 'blue']\"", 'write several answers as \\["red", "blue"\\]'),
    ],
)
def test_a_broken_list_in_a_cell_is_no_answer(cell: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        rows(csv(tmp_path, f"1,a.jpg,What?,{cell}"))


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("kind", "separator"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_texts_of_any_encoding_and_compression_are_found_and_read(
    kind: str, separator: str, encoding: str, suffix: str, tmp_path: Path
) -> None:
    lines = [("id", "image", "question", "answer"), ("1", "a.jpg", '"¿Qué, sí?"', "rojo")]
    text = "".join(separator.join(line) + "\r\n" for line in lines)
    path = tmp_path / f"train{kind}{suffix}"
    path.write_bytes(COMPRESSED[suffix](text.encode(encoding)))
    assert find_tables(tmp_path, "train") == (path,)
    assert rows(path) == [("1", "a", "¿Qué, sí?", "rojo")]


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"id,image,question,answer\n" * 999)[:-20])
    with pytest.raises(UserError, match=r"t\.csv\.gz: the compressed table is damaged or cut off"):
        rows(path)


def test_of_several_tables_one_is_read_and_the_log_says_which(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parquet(tmp_path).rename(tmp_path / "train.parquet")
    assert find_tables(tmp_path, "train") == (tmp_path / "train.parquet",)
    assert not caplog.text
    csv(tmp_path, "1,a.jpg,What?,x").rename(tmp_path / "train.csv")
    assert find_tables(tmp_path, "train") == (tmp_path / "train.csv",)
    assert f"Reading {tmp_path / 'train.csv'} and ignoring {tmp_path / 'train.parquet'}" in (
        caplog.text
    )
    assert "datasets.question_table.questions.train" in caplog.text


def test_a_run_warns_once_of_two_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It looks for its files before it reads them."""
    csv(tmp_path, "1,a.jpg,What?,x").rename(tmp_path / "train.csv")
    shutil.copy(tmp_path / "train.csv", tmp_path / "train.tsv")
    builder = QuestionTableBuilder({"root": str(tmp_path)})
    assert not builder.needs(["train"])[0].missing
    builder.read_split("train")
    assert caplog.text.count("and ignoring") == 1
