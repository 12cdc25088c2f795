"""All formats give the same result for the same questions."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.questions import json_records
from lavis_ext.datasets.questions.answers import answers_in, most_frequent
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.vqa.dataset import VqaDataset
from lavis_ext.registry import registry
from tests.datasets.vqa.written import (
    ASKED,
    FORMATS,
    IMAGES,
    SAID,
    TYPES,
    coco_pairs,
    numbered,
    picture,
    save,
    vqav2,
)

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def build(name: str, root: Path, split: str = "train", **options: Any) -> VqaDataset:
    builder = registry.get_builder_class(name)({"root": str(root), **options})
    sizes = {"grid": 32, "segmentation": 32}
    found: VqaDataset = builder.build_datasets(
        {split: None}, image_sizes=sizes, with_mismatched=False
    )[split]
    return found


def summary(table: QuestionTable) -> set[tuple[str, str | None, tuple[str, ...]]]:
    """The beginning of each question, its training answer, and people's answers."""
    questions, answers = table.texts(range(len(table)), "question", "answer")
    texts = [[question[:9] for question in questions], answers]
    people = [tuple(answers_in(table.structure(row))) for row in range(len(table))]
    return set(zip(*texts, people, strict=True))


EXPECTED = {(ASKED[kind][:9], SAID[kind][0], tuple(SAID[kind])) for kind in range(2)}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_questions_all_answers_and_pictures(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path)
    dataset = build(name, tmp_path)
    assert len(dataset) == 2 * IMAGES
    assert summary(dataset.table) == EXPECTED
    batch = dataset[0]
    assert batch["images"]["grid"].shape == (1, 3, 32, 32)
    assert batch["answer"] == [SAID[0][0]] or batch["answer"] == [SAID[1][0]]


@pytest.mark.parametrize(("name", "split"), [("vqav2", "testdev"), ("aokvqa", "test")])
def test_test_splits_have_questions_without_answers(name: str, split: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path)
    dataset = build(name, tmp_path, split)
    assert len(dataset) == 2 * IMAGES
    assert dataset[3]["answer"] == [None]


def test_coco_names_come_from_the_number_and_the_part(tmp_path: Path) -> None:
    vqav2(tmp_path)
    table = build("vqav2", tmp_path).table
    assert sorted(table.values("image_id"))[0] == "COCO_train2014_000000000009"
    assert (
        build("vqav2", tmp_path, "testdev").table.values("image_id")[0].startswith("COCO_test2015")
    )
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.rename(path.with_name(path.name.rpartition("_")[2]))
    for folder in ("val2014", "test2015"):
        for path in (tmp_path / "images" / folder).iterdir():
            path.unlink()
    assert len(build("vqav2", tmp_path, image_name="{image_id:012d}")) == 2 * IMAGES
    with pytest.raises(UserError, match=r"datasets.vqav2.image_name is '\{number\}'"):
        build("vqav2", tmp_path, image_name="{number}")


def test_a_pair_is_read_in_chunks_of_any_size_and_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vqav2(tmp_path)
    for chunk in (1, 7, 64, 2**20):
        monkeypatch.setattr(json_records, "CHUNK", chunk)
        assert summary(build("vqav2", tmp_path).table) == EXPECTED
    # Questions first, and what belongs to them after the list.
    path = tmp_path / QUESTIONS
    content = json.loads(path.read_text())
    save(path, {"questions": content.pop("questions"), **content})
    assert summary(build("vqav2", tmp_path).table) == EXPECTED


def broken(content: dict[str, Any], member: str, place: int, **changes: Any) -> dict[str, Any]:
    content[member][place] |= changes
    return content


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (ANNOTATIONS, lambda c: broken(c, "annotations", 3, image_id=77), "is about image 77, but"),
        (ANNOTATIONS, lambda c: broken(c, "annotations", 3, question_id=1234), "of the same split"),
        (ANNOTATIONS, lambda c: c | {"annotations": c["annotations"][:5]}, "7 questions have no a"),
        (ANNOTATIONS, lambda c: c | {"annotations": []}, "`annotations` is empty"),
        (ANNOTATIONS, lambda c: {"info": 1}, "the file is an object with info"),
        (ANNOTATIONS, lambda c: c["annotations"], "an object with the list `annotations`"),
        (
            ANNOTATIONS,
            lambda c: broken(c, "annotations", 0, answers=[[1]]),
            "holds a list, not VQA",
        ),
        (QUESTIONS, lambda c: broken(c, "questions", 0, image_id="../x"), "not a whole number"),
        (QUESTIONS, lambda c: broken(c, "questions", 0, image_id=True), "not a whole number"),
        (QUESTIONS, lambda c: broken(c, "questions", 0, question=""), "has no `question`"),
        (QUESTIONS, lambda c: c | {"questions": [5]}, "record 0 of the list is a number"),
        (QUESTIONS, lambda c: {}, "but the file is empty"),
    ],
)
def test_pairs_that_do_not_fit_say_why(file: str, change: Any, says: str, tmp_path: Path) -> None:
    vqav2(tmp_path)
    save(tmp_path / file, change(json.loads((tmp_path / file).read_text())))
    with pytest.raises(UserError, match=says) as error:
        build("vqav2", tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("file", [QUESTIONS, ANNOTATIONS])
def test_a_truncated_pair_names_the_place(file: str, tmp_path: Path) -> None:
    vqav2(tmp_path)
    content = (tmp_path / file).read_bytes()
    for cut in (1, 12, 60, len(content) // 2, len(content) - 1):
        (tmp_path / file).write_bytes(content[:cut])
        with pytest.raises(UserError, match=file):
            build("vqav2", tmp_path)


def test_without_the_part_of_coco_the_names_have_to_be_given(tmp_path: Path) -> None:
    vqav2(tmp_path)
    content = json.loads((tmp_path / QUESTIONS).read_text())
    del content["data_subtype"]
    path = save(tmp_path / "own.json", content)
    with pytest.raises(UserError, match="neither `data_subtype` nor the file's name"):
        build("vqav2", tmp_path, questions={"train": str(path)})
    named = "COCO_train2014_{image_id:012d}"
    assert len(build("vqav2", tmp_path, questions={"train": str(path)}, image_name=named))


def records() -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"q{question}",
            "image": f"shots/{image}.jpg",
            "question": ASKED[kind],
            "answer": SAID[kind],
            "kind": TYPES[kind][0],
        }
        for question, image, kind in numbered()
    ]


def shots(root: Path) -> None:
    for place in range(IMAGES):
        picture(root / "images" / "shots" / f"{9 + place}.jpg", place)


def test_lavis_lists_keep_all_answers(tmp_path: Path) -> None:
    shots(tmp_path)
    save(tmp_path / "train.json", records())
    dataset = build("question_list", tmp_path)
    assert summary(dataset.table) == EXPECTED
    assert dataset.table.text("image_id", 0) == "shots/9"
    assert dataset[0]["ids"] == ["q0"]


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
        )


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def as_saved(folder: Path, rows: list[dict[str, Any]], **state: Any) -> None:
    """Files written by ``Dataset.save_to_disk`` for a split."""
    folder.mkdir()
    table = pa.Table.from_pylist(rows)
    names = []
    for place in range(2):
        names.append(f"data-{place:05d}-of-00002.arrow")
        part = table.slice(place * 6, 6)
        with (
            pa.OSFile(str(folder / names[-1]), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(part)
    files = [{"filename": name} for name in names]
    save(folder / "state.json", {"_data_files": files, "_split": folder.name, **state})


COLUMNS = {"question_id": "question_id", "question_type": "kind"}


@pytest.mark.parametrize("form", ["csv", "parquet", "saved", "hub"])
def test_a_table_of_any_form_gives_the_same(form: str, tmp_path: Path) -> None:
    shots(tmp_path)
    if form == "csv":
        as_csv(tmp_path / "train.csv", records())
    elif form == "parquet":
        as_parquet(tmp_path / "train.parquet", records())
    elif form == "saved":
        as_saved(tmp_path / "train", records())
    else:
        (tmp_path / "data").mkdir()
        as_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", records()[:6])
        as_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", records()[6:])
    dataset = build("question_table", tmp_path, columns=COLUMNS)
    assert summary(dataset.table) == EXPECTED
    assert dataset[0]["ids"] == ["q0"]
    assert set(dataset.table.values("detailed")) == {kind for kind, _ in TYPES}
    numbered_rows = build("question_table", tmp_path)
    assert numbered_rows[11]["ids"] == ["11"], "without a column of ids rows are numbered"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"answer": "answr"}, r"no column 'answr' \(columns.answer\). Did you mean 'answer'"),
        ({"question_id": "id"}, r"no column 'id' \(columns.question_id\)"),
        ({"image": None}, "datasets.question_table.columns.image"),
    ],
)
@pytest.mark.parametrize("form", [as_csv, as_parquet])
def test_a_table_without_the_named_column_lists_its_columns(
    form: Any, columns: dict[str, Any], says: str, tmp_path: Path
) -> None:
    shots(tmp_path)
    form(tmp_path / f"train.{form.__name__.removeprefix('as_')}", records())
    with pytest.raises(UserError, match=says):
        build("question_table", tmp_path, columns=columns)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.csv", b"image,question,answer\na.jpg,What?\n", "line 2 has 2 cells"),
        ("train.csv", b'image,question,answer\na.jpg,"What?,x\n', "not a valid table"),
        ("train.csv", b"image,question,answer\na.jpg,,x\n", "has no `question`"),
        ("train.csv", b"image,question,answer\n\xff,a,b\n", "isn't UTF-8"),
        ("train.csv", b"image,image,question,answer\na,b,c,d\n", "more than one column 'image'"),
        ("train.csv", b"", "no column 'image'"),
        ("train.csv", b"image,question,answer\n", "no question about an image"),
        ("train.parquet", b"PAR1 nothing", "not a valid table"),
        ("train.xlsx", b"", "no table of split 'train'"),
    ],
)
def test_damaged_tables_say_where(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    shots(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        build("question_table", tmp_path)


def test_a_saved_selection_and_files_elsewhere_are_rejected(tmp_path: Path) -> None:
    shots(tmp_path)
    as_saved(tmp_path / "train", records(), _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(UserError, match="flatten_indices"):
        build("question_table", tmp_path)
    save(tmp_path / "train" / "state.json", {"_data_files": [{"filename": "../x.arrow"}]})
    with pytest.raises(UserError, match="names no files of its folder"):
        build("question_table", tmp_path)


def test_pictures_in_a_saved_folder_are_rejected(tmp_path: Path) -> None:
    shots(tmp_path)
    as_saved(tmp_path / "train", [{**each, "image": b"\x89PNG"} for each in records()])
    with pytest.raises(UserError, match="'image' has pictures, not paths"):
        build("question_table", tmp_path)


def test_embedded_pictures_are_looked_for_in_the_images_of_the_config(tmp_path: Path) -> None:
    shots(tmp_path)
    rows = [{**each, "image": {"bytes": b"x", "path": None}} for each in records()]
    as_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(UserError, match=r"missing \(train/0, .*question_table\.images"):
        build("question_table", tmp_path)


def conversations() -> list[dict[str, Any]]:
    return [
        {
            "id": "000000000009",
            "image": "shots/9.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat color is it?"},
                {"from": "gpt", "value": "Red."},
                {"from": "human", "value": "Is it round?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {"id": "text", "conversations": [{"from": "human", "value": "Hello"}]},
        {"id": "gap", "image": float("nan"), "conversations": []},
        {
            "id": "000000000009",
            "image": "shots/10.jpg",
            "conversations": [{"from": "human", "value": "Who is it?\n<image>"}],
        },
    ]


def test_turns_of_conversations_are_questions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shots(tmp_path)
    save(tmp_path / "train.json", conversations())
    table = build("conversations", tmp_path).table
    assert table.texts(range(3), "question_id", "question", "answer") == [
        ["000000000009/0", "000000000009/1", "000000000009@3/0"],
        ["What color is it?", "Is it round?", "Who is it?"],
        ["Red.", "Yes.", None],
    ]
    assert answers_in(table.structure(1)) == ["Yes."]
    assert "2 records without an image are left out" in caplog.text
    save(tmp_path / "train.json", [{"id": "1", "image": "shots/9.jpg"}])
    with pytest.raises(UserError, match="record 1 has no `conversations`"):
        build("conversations", tmp_path)


def test_the_most_frequent_answer_is_the_first_of_several() -> None:
    assert most_frequent(["b", "a", "a", "b", "c"]) == "b"
    assert most_frequent([]) is None
    assert answers_in({"answer": ["red", " ", 2]}) == ["red", "2"]
    assert answers_in({"answers": [{"answer": "red"}]}) == ["red"]
    with pytest.raises(TypeError):
        answers_in({"answer": [None]})


def test_gqa_records_may_have_several_answers(tmp_path: Path, mini_gqa: Path) -> None:
    path = mini_gqa / "questions" / "val_balanced_questions.json"
    content = json.loads(path.read_text())
    for record in content.values():
        record["answer"] = ["no", record["answer"], record["answer"]]
    own = save(tmp_path / "val.json", content)
    builder = registry.get_builder_class("gqa_fusion")
    section = {"type": "mini", "root": str(mini_gqa), "questions": {"val": str(own)}}
    table = builder(section).read_split("val")
    expected = [record["answer"][1] for record in content.values()]
    assert table.texts(range(len(table)), "answer")[0] == expected
    assert answers_in(table.structure(0)) == content[table.text("question_id", 0)]["answer"]


def test_images_are_found_with_and_without_their_folder(tmp_path: Path) -> None:
    for name in ("a/one.jpg", "b/two.png", "b/same.jpg", "a/same.jpg"):
        picture(tmp_path / name, 1)
    images = ImageFolder(tmp_path, recursive=True)
    assert images.path("one") == images.path("a/one") == tmp_path / "a" / "one.jpg"
    assert images.missing(["two", "a/same", "../one"]) == ["../one"]
    assert "two" in images
    with pytest.raises(UserError, match=r"could be a/same\.jpg or b/same\.jpg"):
        images.missing(["same"])
    assert len(images) == 4


def test_okvqa_has_names_of_its_own(tmp_path: Path) -> None:
    coco_pairs(tmp_path, "v2_")
    with pytest.raises(UserError, match="Looked for OpenEnded_mscoco_train2014_questions"):
        build("okvqa", tmp_path)
