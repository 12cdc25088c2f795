"""All readers handle files as other systems and programs leave them."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pytest
from PIL import Image

from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import read_state_dict
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import entries
from lavis_ext.config.loader import load_yaml
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.gqa.grounded_questions import read_grounded_questions
from lavis_ext.datasets.gqa.object_masks import read_object_masks
from lavis_ext.datasets.gqa.questions import find_questions, read_questions
from lavis_ext.datasets.gqa.scene_graphs import read_scene_graphs
from lavis_ext.datasets.pictures import ImageFolder, read_image
from lavis_ext.datasets.questions.json_records import RecordFile
from lavis_ext.datasets.vqa.tables import TableFile
from lavis_ext.evaluation.gqa.files import read_attentions, read_choices
from lavis_ext.evaluation.gqa.predictions import read_predictions
from lavis_ext.runners.state import DamagedState, RunState

QUESTION = {"question": "What is it?", "imageId": "n1", "answer": "a cat"}
GRAPH = {"width": 4, "height": 4, "objects": {}}
CHOICES = {"valid": ["a"], "plausible": ["b"]}


def questions(path: Path) -> Any:
    return read_questions(path).columns.select(["question_id", "image_id", "answer"]).to_pylist()


READERS: dict[str, tuple[Callable[[Path], Any], str, dict[str, Any]]] = {
    # Its reader, the name of an id, and a record without it.
    "questions": (questions, "question_id", QUESTION),
    "grounded questions": (read_grounded_questions, "questionId", QUESTION),
    "scene graphs": (read_scene_graphs, "imageId", GRAPH),
    "choices": (lambda path: [*read_choices(path)], "questionId", CHOICES),
    "predictions": (read_predictions, "question_id", {"answer": "red"}),
    "attentions": (
        lambda path: [(n, a.tolist()) for n, a in read_attentions(path, False)],
        "qid",
        {"attention": [[0.5, 0.5]]},
    ),
}
ENCODED: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "zstd": lambda text: pa.Codec("zstd").compress(text.encode(), asbytes=True),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("encoded", ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_records_are_read_in_every_form(
    reader: tuple[Callable[[Path], Any], str, dict[str, Any]],
    encoded: Callable[[str], bytes],
    tmp_path: Path,
) -> None:
    read, key, record = reader
    keyed = dict.fromkeys(("007", "08", "9"), record)
    listed = [{key: name, **record} for name in keyed]
    forms = {
        "object": json.dumps(keyed, indent=1),
        "list": json.dumps(listed, indent=1),
        "lines": "".join(json.dumps(each) + "\n" for each in listed),
        "one line": json.dumps(listed[0]),
    }
    found = {}
    for form, text in forms.items():
        path = tmp_path / f"{form}.json"
        path.write_bytes(encoded(text))
        found[form] = read(path)
    assert found["object"] == found["list"] == found["lines"]
    assert len(found["one line"]) == 1


@pytest.mark.parametrize("name", ["questionId", "question_id", "questionID", "qid", "id"])
@pytest.mark.parametrize("answer", ["prediction", "answer", "pred_ans", "text"])
def test_predictions_of_other_programs_are_read(name: str, answer: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{name: "07", answer: "red"}, {name: 8, answer: ["blue"]}]))
    assert read_predictions(path) == {"07": "red", "8": "blue"}


@pytest.mark.parametrize("member", ["predictions", "results", "questions", "data"])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_list_in_an_object_is_read_like_a_list(
    reader: tuple[Callable[[Path], Any], str, dict[str, Any]], member: str, tmp_path: Path
) -> None:
    read, key, record = reader
    listed = [{key: name, **record} for name in ("007", "08")]
    contents = [
        listed,
        {member: listed},
        {"info": {"year": 2026, "data": []}, "model": "m", member: listed, "license": "none"},
    ]
    path = tmp_path / "wrapped.json"
    found = []
    for content in contents:
        path.write_text(json.dumps(content, indent=1))
        found.append(read(path))
    assert found[0] == found[1] == found[2]


def test_a_record_with_a_list_of_objects_stays_a_record(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [{"question_id": n, "answer": "red", "data": [{"score": 1}]} for n in range(2)]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert read_predictions(path) == {"0": "red", "1": "red"}


def test_an_id_that_is_a_lists_usual_name_stays_an_id(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"data": ["red"], "results": "blue", "questions": {"answer": "green"}}')
    assert read_predictions(path) == {"data": "red", "results": "blue", "questions": "green"}


@pytest.mark.parametrize(
    ("written", "expected"), [("3", "3"), ("3.0", "3"), ("0.5", "0.5"), ("[2]", "2"), ('""', "")]
)
def test_numbers_are_answers_in_records_and_predictions(
    written: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    path.write_text(f'[{{"question_id": 7.0, "answer": {written}}}]')
    assert read_predictions(path) == {"7": expected}
    question = f'{{"question_id": 7.0, "image": 12.0, "question": "?", "answer": {written}}}'
    path.write_text(f"[{question}]")
    row = {"question_id": "7", "image_id": "12", "answer": expected or None}
    assert questions(path) == [row]


@pytest.mark.parametrize("gap", ["null", "NaN"])
def test_gaps_are_no_values(gap: str, tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(f'[{{"question_id": 1, "image": "a", "question": "?", "answer": {gap}}}]')
    assert questions(path)[0]["answer"] is None
    path.write_text(f'[{{"question_id": {gap}, "image": "a", "question": "?"}}]')
    with pytest.raises(UserError, match="record 0 of the list has no `question_id`"):
        questions(path)
    path.write_text(f'[{{"question_id": 1, "image": {gap}, "question": "?"}}]')
    with pytest.raises(UserError, match="question 1 has no `image`"):
        questions(path)


def test_predictions_are_read_from_an_object_of_answers(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"07": "red", "8": {"prediction": "blue", "answer": "green"}}')
    assert read_predictions(path) == {"07": "red", "8": "blue"}


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_a_cut_archive_is_named(kind: str, tmp_path: Path) -> None:
    content = ENCODED[kind](json.dumps({str(n): QUESTION for n in range(500)}))
    path = tmp_path / "q.json"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"q\.json"):
        [*RecordFile(path)]


def test_a_line_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": "1", "question": "?", "imageId": "n"}\n{"question_id": "2')
    with pytest.raises(UserError, match="record 1 "):
        read_questions(path)


def sidecars(folder: Path, *names: str) -> None:
    """Metadata files of macOS, Windows and archive programs."""
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", *(f"._{name}" for name in names)):
        (folder / name).write_bytes(b"\0\5\26\7Mac OS X")
    inside = folder / "__MACOSX"
    inside.mkdir()
    for name in names:
        (inside / f"._{name}").write_bytes(b"\0")
        (inside / name).write_bytes(b"\0")


def test_sidecars_are_no_shards(tmp_path: Path) -> None:
    folder = tmp_path / "train_all_questions"
    folder.mkdir()
    (folder / "q_10.jsonl.gz").write_bytes(gzip.compress(json.dumps({"2": QUESTION}).encode()))
    (folder / "q_9.json").write_text(json.dumps({"1": QUESTION}))
    sidecars(folder, "q_9.json", "q_10.jsonl.gz")
    assert [row["question_id"] for row in questions(folder)] == ["1", "2"]


@pytest.mark.parametrize("recursive", [False, True])
def test_sidecars_are_no_images(recursive: bool, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.jpg")
    sidecars(tmp_path, "1.jpg", "2.png")
    assert list(ImageFolder(tmp_path, recursive=recursive)) == ["1"]
    assert [path.name for path in entries(tmp_path)] == ["1.jpg"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.xz", ".ndjson.zst"])
def test_a_split_is_found_in_any_form(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"val_all_questions{suffix}").write_text("{}")
    assert find_questions(tmp_path, "val", "all").name.endswith(suffix)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("1.jpg", "2.PNG", "train2014/3.jpg", "a/4.jpg", "b/4.jpg", "5.jpg", "5.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *(("1", "1.jpg"), ("1.jpg", "1.jpg"), ("1.JPG", "1.jpg"), ("1.png", "1.jpg")),
        *(("2.png", "2.PNG"), ("images/1.jpg", "1.jpg"), ("gqa\\images\\1.jpg", "1.jpg")),
        *(("train2014/3.jpg", "train2014/3.jpg"), ("coco/train2014/3", "train2014/3.jpg")),
        *(("3.jpg", "train2014/3.jpg"), ("a/4.jpg", "a/4.jpg"), ("5.png", "5.png")),
    ],
)
def test_an_image_is_found_by_the_names_of_records(images: Path, name: str, file: str) -> None:
    folder = ImageFolder(images, recursive=True)
    assert name in folder
    assert folder.path(name) == images / file
    assert folder.missing([name]) == []


@pytest.mark.parametrize("name", ["4", "4.jpg", "5", "5.gif"])
def test_a_name_of_several_images_is_rejected(images: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"image '{name}' could be "):
        ImageFolder(images, recursive=True).missing([name])


def test_ids_with_equal_file_names_in_missing_folders_are_rejected(images: Path) -> None:
    with pytest.raises(UserError, match=r"'x/1' and 'y/1' in the records would both be 1\.jpg"):
        ImageFolder(images, recursive=True).missing(["x/1", "y/1"])
    assert ImageFolder(images, recursive=True).missing(["1", "1.jpg", "c/3"]) == ["c/3"]


def test_images_that_cannot_be_opened_are_missing(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    (images / "empty.jpg").write_bytes(b"")
    (images / "folder.jpg").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p.name != "2.PNG" and access(p, mode))
    folder = ImageFolder(images, recursive=True)
    names = ["1", "2", "gone", "empty", "folder"]
    assert folder.missing(names) == ["2", "empty", "folder", "gone"]


PIPES: dict[str, Callable[[Path], Any]] = {
    **{name: read for name, (read, _, _) in READERS.items()},
    "image": read_image,
    "table": lambda path: [*TableFile(path, {})],
    "config": load_yaml,
    "state": RunState.load,
    "masks": lambda path: read_object_masks(path.parents[1], "val", {}),
    "weights": lambda path: TrainedWeights.load(path),
    "checkpoint": read_state_dict,
    "checkpoint's source": lambda path: resolve(str(path), key="k"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", PIPES.values(), ids=PIPES)
def test_a_named_pipe_is_refused_instead_of_waited_for(
    read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "instances" / "val_instances.json"
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises((UserError, DamagedState), match=r"val_instances\.json") as error:
        read(path)
    said = str(error.value).lower()
    assert "a named pipe, not a file" in said or "there is no" in said


def test_a_named_pipe_is_no_image(images: Path) -> None:
    os.mkfifo(images / "pipe.jpg")
    assert ImageFolder(images).missing(["1", "pipe"]) == ["pipe"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["café", "café.jpg", "x/café.jpg"])
def test_accents_may_be_composed_or_decomposed(form: Any, name: str, tmp_path: Path) -> None:
    """macOS writes names of files decomposed."""
    forms: Any = ("NFC", "NFD")
    for written in forms:
        folder = tmp_path / written
        (folder / "x").mkdir(parents=True)
        file = folder / "x" / normalize(written, "café.jpg")
        Image.new("RGB", (4, 4)).save(file)
        (folder / normalize(written, "résumé.txt")).touch()
        found = ImageFolder(folder, recursive=True)
        assert found.path(normalize(form, name)) == file
        assert len(found) == 1
    graph = tmp_path / "g.json"
    graph.write_text(json.dumps({normalize(form, name): GRAPH}))
    (image_id,) = read_scene_graphs(graph)
    record = {"1": QUESTION | {"imageId": normalize("NFD", name)}}
    graph.write_text(json.dumps(record))
    assert questions(graph)[0]["image_id"] == image_id


@pytest.mark.parametrize("names", [("train_all_questions.json", "train_all_questions.json.gz")])
def test_of_several_question_files_one_is_read_and_the_log_says_which(
    names: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert find_questions(tmp_path, "train", "all").name == names[0]
    assert f"ignoring {tmp_path / names[1]}; set datasets.gqa_fusion.questions.train" in caplog.text


def test_a_broken_link_is_counted_before_training(images: Path, tmp_path: Path) -> None:
    (tmp_path / "questions").mkdir()
    records = {str(n): QUESTION | {"imageId": name} for n, name in enumerate(("1.jpg", "gone"))}
    (tmp_path / "questions" / "train_balanced_questions.json").write_text(json.dumps(records))
    (images / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    sizes = {"sizes": {"grid": 8}}
    processor = {"name": "stream_images", **sizes}
    config = {"root": str(tmp_path), "vis_processor": {"train": processor, "eval": processor}}
    with pytest.raises(UserError, match=r"1 of the 2 images .* missing \(gone\).* 1 of them exist"):
        GqaFusionBuilder(config).build_datasets({"train": None})


def test_masks_are_read_compressed(mini_gqa: Path, tmp_path: Path) -> None:
    graphs = read_scene_graphs(mini_gqa / "sceneGraphs" / "val_sceneGraphs.json")
    name = "instances/val_instances.json"
    (tmp_path / "instances").mkdir()
    (tmp_path / name).write_bytes(gzip.compress((mini_gqa / name).read_bytes()))
    assert read_object_masks(tmp_path, "val", graphs) == read_object_masks(mini_gqa, "val", graphs)
