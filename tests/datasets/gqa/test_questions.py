"""Question files: GQA's three layouts and LAVIS's, valid and broken."""

import json
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.questions import find_questions, read_questions
from lavis_ext.datasets.questions.table import SCHEMA, QuestionTable

EXCERPT = Path(__file__).parents[4] / "shared" / "data" / "gqa_train_all_excerpt.json"
RECORD = {"question": "What is it?", "imageId": "n1", "answer": "a cat"}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(table: QuestionTable) -> list[dict[str, str | None]]:
    found: list[dict[str, str | None]] = table.columns.to_pylist()
    return found


def test_a_raw_file_keeps_ids_with_leading_zeros_and_structural_types(tmp_path: Path) -> None:
    types = {"structural": "query", "semantic": "attr", "detailed": "categoryThat"}
    file = write(
        tmp_path / "q.json",
        {"02930152": RECORD | {"types": types}, "7": RECORD | {"imageId": 2354786}},
    )
    first, second = rows(read_questions(file))
    assert first == {
        "question_id": "02930152",
        "image_id": "n1",
        "question": "What is it?",
        "answer": "a cat",
        "structural": "query",
        "semantic": "attr",
        "detailed": "categoryThat",
    }
    assert second["question_id"] == "7"
    assert second["image_id"] == "2354786"
    assert second["structural"] is second["semantic"] is second["detailed"] is None


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "questions" / "train_all_questions"
    folder.mkdir(parents=True)
    for shard in (10, 2, 0):
        write(folder / f"train_all_questions_{shard}.json", {f"0{shard}": RECORD})
    found = find_questions(tmp_path, "train", "all")
    assert found == folder
    assert [row["question_id"] for row in rows(read_questions(found))] == ["00", "02", "010"]


def test_lavis_form_is_read(tmp_path: Path) -> None:
    listed = [
        {"question_id": "02930152", "question": "What?", "image": "n1.jpg", "answer": ["a cat"]},
        {"question_id": 7, "question": "Who?", "image": "gqa/images/n2.png"},
    ]
    first, second = rows(read_questions(write(tmp_path / "q.json", listed)))
    assert (first["question_id"], first["image_id"], first["answer"]) == ("02930152", "n1", "a cat")
    assert (second["question_id"], second["answer"]) == ("7", None)
    assert second["image_id"] == "gqa/images/n2"  # the image folder finds it, with or without


def test_a_byte_order_mark_and_an_answer_of_spaces_are_no_content(tmp_path: Path) -> None:
    record = RECORD | {"answer": " "}
    file = write(tmp_path / "q.json", "\ufeff" + json.dumps({"1": record}))
    assert rows(read_questions(file))[0]["answer"] is None


@pytest.mark.skipif(not EXCERPT.exists(), reason=f"{EXCERPT.name} is not on this machine")
def test_the_genuine_excerpt_is_read() -> None:
    raw = json.loads(EXCERPT.read_text(encoding="utf-8"))
    table = read_questions(EXCERPT)
    assert len(table) == len(raw) == 122
    for row in rows(table):
        record = raw[row["question_id"]]
        assert row["question"] == record["question"]
        assert row["image_id"] == record["imageId"]
        assert row["detailed"] == record["types"]["detailed"]
    assert any(str(row["question_id"]).startswith("0") for row in rows(table))


BROKEN: dict[str, tuple[Any, list[str]]] = {
    "cut off in an object": (
        '{"1": {"question": "What is it?", "imag',
        ["is cut off at byte 39", "record 0 (counted from 0), question 1, that begins at byte 1"],
    ),
    "cut off after a record": (json.dumps({"1": RECORD})[:-1], ["is cut off"]),
    "cut off on a later line": ('{\n"1": {\n"question": 4,', ["is cut off at byte 23"]),
    "other text": ("<html>404</html>", ["isn't JSON"]),
    "empty": ("", ["is empty"]),
    "spaces": (" \n", ["is empty"]),
    "empty object": ({}, ["the file is empty"]),
    "empty list": ([], ["the file is empty"]),
    "a number": ("3", ["the file is a number"]),
    "null": ("null", ["the file is null"]),
    "a text": ('"x"', ["the file is a string"]),
    "list of numbers": ([1, 2], ["record 0 of the list is a number"]),
    "object of numbers": ({"1": 3}, ["question 1 is a number"]),
    "object of lists": ({"1": [RECORD]}, ["question 1 is a list"]),
    "one level too deep": ({"train": {"1": RECORD}}, ["question train", "`imageId`"]),
    "nested without end": ("[" * 100_000, ["nested too deeply"]),
    "no question": ({"1": {"imageId": "n1"}}, ["question 1 has no `question`"]),
    "question of spaces": ({"1": RECORD | {"question": " "}}, ["question 1 has no `question`"]),
    "question null": ({"1": RECORD | {"question": None}}, ["question 1 has no `question`"]),
    "question an object": (
        {"1": RECORD | {"question": {}}},
        ["`question` of question 1", "object"],
    ),
    "question true": ({"1": RECORD | {"question": True}}, ["`question` of question 1", "boolean"]),
    "no image": ({"1": {"question": "What?"}}, ["question 1 has no `imageId`"]),
    "image empty": ({"1": RECORD | {"imageId": ""}}, ["question 1 has no `imageId`"]),
    "image a list": (
        {"1": RECORD | {"imageId": ["a", "b"]}},
        ["`imageId` of question 1", "a list"],
    ),
    "answer an object": ({"1": RECORD | {"answer": {}}}, ["`answer` of question 1", "an object"]),
    "types a list": ({"1": RECORD | {"types": ["query"]}}, ["`types` of question 1", "a list"]),
    "a type a list": (
        {"1": RECORD | {"types": {"detailed": ["a", "b"]}}},
        ["`detailed` of question 1", "a list"],
    ),
    "no id": ([RECORD], ["record 0", "`question_id`"]),
    "half a character": (
        '{"7": {"question": "\\ud83d", "imageId": "n1"}}',
        ["question '7'", "half"],
    ),
    "id twice in an object": (
        f'{{"02": {json.dumps(RECORD)}, "02": {json.dumps(RECORD)}}}',
        ["occur more than once (02)"],
    ),
    "id twice in a list": (
        [RECORD | {"question_id": "5"}, RECORD | {"question_id": 5}],
        ["1 question ids occur more than once (5)"],
    ),
}


@pytest.mark.parametrize(("content", "parts"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_with_path_and_reason(
    content: Any, parts: list[str], tmp_path: Path
) -> None:
    file = write(tmp_path / "train_balanced_questions.json", content)
    with pytest.raises(UserError) as caught:
        read_questions(file)
    assert str(file) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(file))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(UserError, match="isn't UTF-8") as caught:
        read_questions(file)
    assert str(file) in str(caught.value)


def test_the_same_id_in_two_shards_is_rejected(tmp_path: Path) -> None:
    for shard in (0, 1):
        write(tmp_path / f"q_{shard}.json", {"02930152": RECORD})
    with pytest.raises(UserError, match="02930152"):
        read_questions(tmp_path)


def test_missing_files_are_named_with_the_searched_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*\.json files"):
        read_questions(tmp_path)
    with pytest.raises(UserError, match=r"gone\.json: .*No such file"):
        read_questions(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"datasets\.gqa_fusion\.root: there is no folder"):
        find_questions(tmp_path / "gone", "train", "balanced")
    with pytest.raises(UserError, match="no balanced questions of split 'val'") as caught:
        find_questions(tmp_path, "val", "balanced")
    assert "val_balanced_questions.json" in str(caught.value)


@pytest.mark.parametrize("folder", ["questions", "questions1.2", "annotations", "."])
def test_balanced_and_all_are_found_in_each_usual_folder(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for subset in ("balanced", "all"):
        file = write(tmp_path / folder / f"train_{subset}_questions.json", {subset: RECORD})
        assert find_questions(tmp_path, "train", subset).samefile(file)


def table_of(questions: list[str], detailed: list[str | None] | None = None) -> QuestionTable:
    import pyarrow as pa

    records = [
        {
            "question_id": str(place),
            "image_id": str(place // 10),
            "question": question,
            "detailed": detailed[place] if detailed else None,
        }
        for place, question in enumerate(questions)
    ]
    return QuestionTable(pa.Table.from_pylist(records, schema=SCHEMA))


def test_question_codes_disregard_case_and_spaces() -> None:
    codes = table_of(
        ["What is  it?", " what IS it? ", "what is\tit?", "What isit?"]
    ).question_codes()
    assert codes[0] == codes[1] == codes[2] != codes[3]


def test_a_form_is_the_detailed_type_with_the_first_three_words() -> None:
    forms = table_of(
        ["What color is it?", " what  COLOR is that?", "What color is it?", "Who is it?", "Why?"],
        ["color", "color", None, None, None],
    ).form_codes()
    assert forms[0] == forms[1]
    assert len({*forms[1:]}) == 4


def test_a_sample_is_drawn_from_the_whole_file_by_its_seed() -> None:
    table = table_of([f"q{place}" for place in range(1000)])
    drawn = [int(str(row["question_id"])) for row in rows(table.sample(50, seed=1))]
    assert len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert max(drawn) > 800, "the first records of the file alone"
    assert rows(table.sample(50, seed=1)) == rows(table.sample(50, seed=1))
    assert rows(table.sample(50, seed=1)) != rows(table.sample(50, seed=2))
    assert rows(table.sample(5000, seed=1)) == rows(table.sample(None, seed=1)) == rows(table)
