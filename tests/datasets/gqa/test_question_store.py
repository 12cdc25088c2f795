"""The question store: contents, conversion, locking and damage."""

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lavis_ext.common import locks, progress
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa import questions as gqa_questions
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.gqa.questions import find_questions, read_questions
from lavis_ext.datasets.questions import builder as question_builder
from lavis_ext.datasets.questions import conversion as question_conversion
from lavis_ext.datasets.questions import json_records
from lavis_ext.datasets.questions import store as question_store
from lavis_ext.datasets.questions.table import QuestionTable
from tests.datasets.gqa.test_questions import BROKEN, RECORD, rows, write
from tests.launching import PATIENCE, wait_until

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Convert files of any size, into several chunks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(question_store, "SMALL", 0)
    monkeypatch.setattr(question_conversion, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(question_conversion, "ROWS_A_BATCH", 32)
    monkeypatch.setattr(question_conversion, "BATCHES_A_CHUNK", 2)
    monkeypatch.setattr(question_conversion, "RECORDS_A_BATCH", 16)


def some_questions(count: int, begin: int = 0) -> dict[str, Any]:
    return {
        f"0{number}": {
            "question": f"What is {number}?",
            "imageId": f"n{number // 7}",
            "answer": "a cat" if number % 2 else None,
            "semantic": [{"operation": "select", "argument": f"it ({number})"}],
            "entailed": [f"0{number + 1}"],
        }
        for number in range(begin, begin + count)
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.endswith(".arrow")]


def written(file: Path) -> tuple[int, int]:
    return file.stat().st_ino, file.stat().st_mtime_ns


def in_another_process(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program that logs to stderr and converts files of any size."""
    head = (
        "import logging, os, sys, time\n"
        "from pathlib import Path\n"
        "from lavis_ext.datasets.questions import conversion as question_conversion\n"
        "from lavis_ext.datasets.questions import store as question_store\n"
        "from lavis_ext.datasets.gqa.questions import read_questions\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "question_store.SMALL = 0\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + script, *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("chunk", [1, 100, 4 * 2**20])
def test_a_store_has_the_records_of_its_file(
    mini_gqa: Path,
    tmp_path: Path,
    stored: None,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    monkeypatch.setattr(json_records, "CHUNK", chunk)
    source = find_questions(mini_gqa, "val", "all")
    raw = json.loads(source.read_text())
    table = read_questions(source, tmp_path / "store")
    assert files(next((tmp_path / "store").iterdir())), "nothing was stored"
    assert [row["question_id"] for row in rows(table)] == list(raw)
    for number, (row, record) in enumerate(zip(rows(table), raw.values(), strict=True)):
        assert row["image_id"] == record["imageId"]
        assert (row["question"], row["answer"]) == (record["question"], record["answer"])
        assert [row[kind] for kind in ("structural", "semantic", "detailed")] == [
            record["types"][kind] for kind in ("structural", "semantic", "detailed")
        ]
        assert table.structure(number) == record


def test_a_store_has_the_codes_and_forms_that_its_rows_give(
    mini_gqa: Path, tmp_path: Path, stored: None
) -> None:
    table = read_questions(find_questions(mini_gqa, "val", "all"), tmp_path)
    alone = QuestionTable(table.columns.cast(QuestionTable(table.columns).columns.schema))
    for name in ("image_id", "answer", "question_code", "form"):
        assert (table.codes(name) == alone.codes(name)).all()
    assert table.forms().to_pylist() == alone.forms().to_pylist()
    assert table.values("structural") == alone.values("structural")
    assert table.codes("image_id") is table.codes("image_id"), "each caller has a copy of it"


def test_rows_come_in_the_order_asked_for(tmp_path: Path, stored: None) -> None:
    table = read_questions(write(tmp_path / "q.json", some_questions(300)))
    assert table.data["question"].num_chunks == 5
    asked = np.random.default_rng(0).integers(300, size=200)
    taken = table.take(asked)
    assert rows(taken) == [rows(table)[row] for row in asked]
    answers, ids = table.texts(asked, "answer", "question_id")
    assert ids == [f"0{row}" for row in asked]
    assert answers == ["a cat" if row % 2 else None for row in asked]
    assert (taken.codes("image_id") == table.codes("image_id")[asked]).all()
    assert [taken.structure(place)["entailed"] for place in range(200)] == [
        [f"0{row + 1}"] for row in asked
    ]
    assert len(table.take([])) == 0
    assert table.take([]).values("answer") == []


@pytest.mark.parametrize("small", [0, 2**30])
def test_a_table_is_pickled_as_a_path_to_its_store(
    tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(question_store, "SMALL", small)
    table = read_questions(write(tmp_path / "q.json", some_questions(3000)))
    drawn = table.sample(100, seed=0)
    for each in (table, drawn, drawn.take([5, 3])):
        data = pickle.dumps(each)
        assert small or len(data) < 2000
        again = pickle.loads(data)
        assert rows(again) == rows(each)
        assert again.structure(1) == each.structure(1)
        assert (again.codes("image_id") == each.codes("image_id")).all()


def test_structure_is_read_only_when_it_is_asked_for(tmp_path: Path, stored: None) -> None:
    table = read_questions(write(tmp_path / "q.json", some_questions(50)))
    (records,) = (tmp_path / question_store.FOLDER).glob("*.records.arrow")
    assert table.text("question", 40) == "What is 40?"
    assert _held(records) == 0
    assert table.structure(40)["semantic"] == [{"operation": "select", "argument": "it (40)"}]
    assert _held(records) > 0


def _held(path: Path) -> int:
    """Kilobytes of a file that are resident in this process's mappings."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    places = [place for place, line in enumerate(lines) if line.endswith(str(path))]
    return sum(
        int(next(line for line in lines[place:] if line.startswith("Rss:")).split()[1])
        for place in places
    )


def test_small_files_leave_no_store(tmp_path: Path) -> None:
    read_questions(write(tmp_path / "q.json", some_questions(10)))
    assert names(tmp_path) == ["q.json"]


def test_a_store_is_used_again_until_its_files_change(tmp_path: Path, stored: None) -> None:
    source = write(tmp_path / "q.json", some_questions(40))
    other = write(tmp_path / "q.x.json", some_questions(3))
    folder = tmp_path / question_store.FOLDER
    first, _ = read_questions(source), read_questions(other)
    before = {name: written(folder / name) for name in files(folder)}
    assert len(before) == 4
    assert len(read_questions(source)) == 40
    assert {name: written(folder / name) for name in files(folder)} == before
    write(source, some_questions(41))
    assert len(read_questions(source)) == 41
    assert len(files(folder)) == 4, "the store of the old file is still there"
    assert len({*files(folder)} & {*before}) == 2, "another source's store was removed"
    assert first.text("question", 39) == "What is 39?", "a running process has lost its questions"
    with pytest.raises(UserError, match="are gone, probably because the question files changed"):
        pickle.loads(pickle.dumps(first))


def test_a_damaged_store_is_written_again(
    tmp_path: Path, stored: None, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "q.json", some_questions(40))
    read_questions(source)
    for size in (0, 100):
        (questions,) = (tmp_path / question_store.FOLDER).glob("*.questions.arrow")
        os.truncate(questions, size)
        assert len(read_questions(source)) == 40
        assert "is damaged and will be rewritten" in caplog.text
        caplog.clear()


def test_a_bit_that_flipped_in_a_store_is_found_or_harmless(tmp_path: Path, stored: None) -> None:
    """Arrow doesn't check mapped files; without a check, one flip in ten crashes Python."""
    source = write(tmp_path / "q.json", some_questions(40))
    whole = read_questions(source).columns.to_pylist()
    folder = tmp_path / question_store.FOLDER
    good = {folder / name: (folder / name).read_bytes() for name in files(folder)}
    random = np.random.default_rng(0)
    equal = 0
    for path, content in [*good.items()] * 100:
        damaged = bytearray(content)
        for place in random.integers(len(content), size=3):
            damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        table = read_questions(source)
        table.codes("form")
        equal += table.columns.to_pylist() == whole
        try:
            assert [table.structure(row)["question"] for row in range(40)]
        except UserError as error:
            assert "are damaged" in str(error)  # noqa: PT017 (it may also be sound)
        except KeyError as error:
            assert "question" in str(error)  # noqa: PT017 (a letter of a record's text)
        for each, bytes_of in good.items():
            each.write_bytes(bytes_of)
    assert equal > 120


def test_a_killed_conversion_leaves_no_partial_store(tmp_path: Path, stored: None) -> None:
    source = write(tmp_path / "q.json", some_questions(5000))
    killed = in_another_process(
        "question_conversion.ROWS_A_BATCH = 512\n"
        "def kill(records, size): os.kill(os.getpid(), 9)\n"
        "question_store._Stored._progress = lambda *_: kill\n"
        "read_questions(Path(sys.argv[1]))",
        str(source),
    )
    killed.communicate(timeout=PATIENCE)
    assert killed.returncode == -9
    folder = tmp_path / question_store.FOLDER
    assert not [
        name for name in names(folder) if not name.startswith(".") and name != "q.json.lock"
    ]
    assert len(names(folder)) > 1, "it was killed too early to tell"
    assert len(read_questions(source)) == 5000
    assert len(names(folder)) == 3, "what the killed one left is still there"


def test_one_process_converts_and_another_shows_its_progress(
    tmp_path: Path,
    stored: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write(tmp_path / "q.json", some_questions(20_000))
    seen = tmp_path / "seen"
    other = in_another_process(
        "question_conversion.ROWS_A_BATCH = 2048\n"
        "hashes = question_conversion._hashes\n"
        "batches = []\n"
        "def wait_until_seen(texts):\n"
        "    batches.append(len(texts))\n"
        "    while len(batches) > 2 and not Path(sys.argv[2]).exists():\n"
        "        time.sleep(0.01)\n"
        "    return hashes(texts)\n"
        "question_conversion._hashes = wait_until_seen\n"
        "print(len(read_questions(Path(sys.argv[1]))))",
        str(source),
        str(seen),
    )
    note = tmp_path / question_store.FOLDER / ".q.json.lock.progress"
    wait_until(lambda: (note.exists() and note.read_text()) or other.poll() is not None)
    assert other.poll() is None, other.communicate()[1]
    read_note = locks.Lock.read_note

    def see(lock: locks.Lock) -> str:
        text = read_note(lock)
        if text:
            seen.touch()
        return text

    monkeypatch.setattr(locks.Lock, "read_note", see)
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    monkeypatch.setattr(locks, "SECONDS_A_LOOK", 0.05)
    with caplog.at_level("INFO"):
        assert len(read_questions(source)) == 20_000
    assert re.search(r"Waiting for another process: q\.json: .* records converted", caplog.text)
    assert "converting" not in caplog.text
    out, err = other.communicate(timeout=PATIENCE)
    assert out.split() == ["20000"]
    assert err.count("converting") == 1


def test_a_file_that_changes_during_conversion_is_rejected(
    tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "q.json", some_questions(40))
    read_rows = gqa_questions.read_rows

    def and_write(file: json_records.RecordFile) -> Any:
        yield from read_rows(file)
        write(source, some_questions(41))

    monkeypatch.setattr(gqa_questions, "read_rows", and_write)
    with pytest.raises(UserError, match=r"q\.json: the question file changed while it was read"):
        read_questions(source)
    assert not files(tmp_path / question_store.FOLDER)


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path: Path, stored: None) -> None:
    source = write(tmp_path / "q.json", some_questions(40))
    (tmp_path / question_store.FOLDER).touch()  # no folder can be made there
    assert len(read_questions(source)) == 40
    (cached,) = (tmp_path / "cache").rglob("*.questions.arrow")
    before = written(cached)
    assert len(read_questions(source)) == 40
    assert written(cached) == before
    (tmp_path / "no_folder").touch()
    with pytest.raises(UserError, match=r"datasets\.NAME\.question_store") as caught:
        read_questions(source, tmp_path / "no_folder")
    assert "no_folder" in str(caught.value)


def test_a_full_disk_is_named(
    tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(question_conversion._Conversion, "write_questions", full)
    with pytest.raises(
        UserError, match=r"can't be written \(No space left on device\)\. Free some disk space"
    ):
        read_questions(write(tmp_path / "q.json", some_questions(40)))
    assert names(tmp_path / question_store.FOLDER) == ["q.json.lock"]


def test_too_little_disk_space_is_an_error_before_a_conversion(
    tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "q.json", some_questions(40))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        UserError, match=r"need more than .* [KM]iB, and .* are free\. Free some disk space"
    ):
        read_questions(source)
    monkeypatch.undo()
    assert not files(tmp_path / question_store.FOLDER)


def test_a_disk_full_during_conversion_is_an_error_and_leaves_no_files(
    tmp_path: Path, stored: None
) -> None:
    """The progress note can't be written either."""
    source = write(tmp_path / "q.json", some_questions(400))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        with pytest.raises(
            UserError, match=r"can't be written .*File too large.*Free some disk space"
        ):
            read_questions(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert names(tmp_path / question_store.FOLDER) == ["q.json.lock"]
    assert len(read_questions(source)) == 400


def test_a_run_reads_the_records_it_began_with_when_its_files_change(
    tmp_path: Path, stored: None
) -> None:
    source = write(tmp_path / "q.json", some_questions(40))
    table = read_questions(source)
    write(source, some_questions(41))
    assert len(read_questions(source)) == 41
    assert len(files(tmp_path / question_store.FOLDER)) == 2, "the old store is gone"
    assert table.store.record(39) == some_questions(1, 39)["039"]


def test_files_of_one_size_and_other_contents_differ(tmp_path: Path, stored: None) -> None:
    stores = []
    for begin in (10, 10, 50):
        (tmp_path / f"{len(stores)}").mkdir()
        path = write(tmp_path / f"{len(stores)}" / "q.json", some_questions(20, begin))
        stores.append((path.stat().st_size, read_questions(path).store.contents))
    assert len({size for size, _ in stores}) == 1
    assert stores[0][1] == stores[1][1] != stores[2][1]


def test_the_config_sets_the_folder_of_stores(
    mini_gqa: Path, tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"type": "mini", "root": str(mini_gqa), "question_store": str(tmp_path / "here")}
    made = GqaFusionBuilder(section)
    sizes = {"grid": 32}
    made.build_datasets({"val": None}, image_sizes=sizes)
    assert list((tmp_path / "here").rglob("val_balanced_questions.*.questions.arrow"))
    other = {"val": b"other files"}
    monkeypatch.setattr(question_builder, "gather", lambda items: [*items, other])
    with pytest.raises(UserError, match="split 'val' differ between the processes"):
        made.build_datasets({"val": None}, image_sizes=sizes)


def test_an_id_in_two_shards_is_found_by_more_than_its_hash(
    tmp_path: Path, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "questions"
    source.mkdir()
    for shard in range(3):
        write(source / f"q_{shard}.json", some_questions(50, begin=shard * 50))
    monkeypatch.setattr(
        question_conversion, "_hashes", lambda texts: np.zeros(len(texts), np.int64)
    )
    assert len(read_questions(source)) == 150
    write(source / "q_2.json", some_questions(50, begin=99))
    with pytest.raises(UserError, match=r"1 question ids occur more than once \(099\)"):
        read_questions(source)


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize(("content", "parts"), BROKEN.values(), ids=BROKEN)
def test_faults_are_named_at_any_position_of_the_reader(
    content: Any, parts: list[str], chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "CHUNK", chunk)
    with pytest.raises(UserError) as caught:
        read_questions(write(tmp_path / "q.json", content))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("listed", [False, True])
def test_a_file_that_breaks_off_names_the_record_and_the_byte(tmp_path: Path, listed: bool) -> None:
    records = {name: {**RECORD, "answer": "é😀 \\u12ab"} for name in ("a1", "b2", "c3")}
    content: Any = [{"question_id": i, **r} for i, r in records.items()] if listed else records
    whole = json.dumps(content, ensure_ascii=False).encode()
    begin = whole.index(b'{"question_id": "c3"' if listed else b'"c3"')
    for end in range(begin + 6, len(whole)):
        file = tmp_path / "q.json"
        file.write_bytes(whole[:end])
        with pytest.raises(UserError) as caught:
            read_questions(file)
        said = str(caught.value)
        assert "is cut off at byte" in said, whole[:end]
        stated = int(said.split("at byte ")[1].split(",")[0])
        assert abs(stated - end) <= 4, (said, end)
        if end < len(whole) - 1:
            assert f"record 2 (counted from 0){'' if listed else ', question c3,'}" in said
            assert f"that begins at byte {begin}" in said


def test_a_file_of_another_shape_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "CHUNK", 1000)
    monkeypatch.setattr(json_records, "LONGEST_RECORD", 5000)
    file = write(tmp_path / "q.json", {"train": some_questions(1000)})
    with pytest.raises(UserError, match=r"record 0 .*question train, .* is longer than"):
        read_questions(file)


MEASURED = """
import json, resource
def converted(count):
    source = Path(sys.argv[1]) / f"{count}.json"
    with source.open("w") as file:
        for number in range(count):
            record = {"question": f"What is {number}?", "imageId": str(number // 100),
                      "answer": "cat", "fullAnswer": f"{number} " * 100}
            file.write(f'{"," if number else "{"}"{number}": {json.dumps(record)}')
        file.write("}")
    assert len(read_questions(source)) == count
    print(source.stat().st_size / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
question_conversion.ROWS_A_BATCH = 4096
converted(20_000)
converted(100_000)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    process = in_another_process(MEASURED, str(tmp_path))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    (small_file, small), (large_file, large) = (
        map(float, line.split()) for line in out.split("\n")[:2]
    )
    assert large_file - small_file > 40
    assert large - small < 20, "MB more for a file that is so much longer"
