"""The mini-GQA data set: its bytes, its answers, its balance, its files."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.object_masks import read_object_masks
from lavis_ext.datasets.gqa.scene_graphs import read_scene_graphs
from lavis_ext.datasets.mini_gqa import make_mini_gqa, writer
from lavis_ext.datasets.mini_gqa.__main__ import main
from lavis_ext.datasets.mini_gqa.rendering import render
from lavis_ext.datasets.mini_gqa.scenes import sample_scene
from lavis_ext.datasets.mini_gqa.vocabulary import (
    CATEGORY_OF,
    FINE,
    KEY_OF,
    SHAPES,
    TOUCHING,
    WORLDS,
    World,
)

CATEGORY_NAMES = {**SHAPES.categories, **FINE.categories}
SPLITS = ("train", "val", "testdev")
Record = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=[SHAPES, FINE], ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """A set of moderate size, 30 images in val and testdev."""
    out = tmp_path_factory.mktemp("mini_gqa") / "set"
    make_mini_gqa(out, images=300, seed=3, world=world.name)
    return out


@pytest.fixture(scope="module")
def questions(folder: Path) -> dict[str, dict[str, Record]]:
    return {
        f"{split}_{kind}": load(folder / "questions" / f"{split}_{kind}_questions.json")
        for split in SPLITS
        for kind in ("all", "balanced")
    }


@pytest.fixture(scope="module")
def scenes(folder: Path) -> dict[str, Record]:
    merged: dict[str, Record] = {}
    for split in SPLITS:
        graphs = load(folder / "sceneGraphs" / f"{split}_sceneGraphs.json")
        assert not merged.keys() & graphs.keys()
        merged |= graphs
    return merged


# --- an interpreter of GQA's programs over scene graphs, which knows nothing of the generator ---


def run_program(question: Record, scene: Record) -> str:
    """The answer of ``semantic`` in ``scene``; fails on a reference that is not unique."""
    objects = scene["objects"]
    results: list[Any] = []

    def is_a(object_id: str, noun: str) -> bool:
        name = objects[object_id]["name"]
        return noun in ("shape", "_", name) or name in CATEGORY_NAMES.get(noun, ())

    def relation_holds(subject: str, relation: str, anchor: str) -> bool:
        return {"name": relation, "object": anchor} in objects[subject]["relations"]

    def the(ids: list[str]) -> str:
        assert len(ids) == 1, f"{len(ids)} objects fit in: {question['question']}"
        return ids[0]

    def value(object_id: str, key: str) -> str:
        item = objects[object_id]
        if key == "name":
            return item["name"]
        if key == "hposition":
            return "left" if item["x"] + item["w"] / 2 < scene["width"] / 2 else "right"
        if key == "vposition":
            return "top" if item["y"] + item["h"] / 2 < scene["height"] / 2 else "bottom"
        values = SHAPES.attributes.get(key) or FINE.attributes[key]
        return the([v for v in item["attributes"] if v in values])

    for step in question["semantic"]:
        argument = re.sub(r" \([\d,-]+\)$", "", step["argument"])
        ids = re.findall(r"\d+", step["argument"])
        inputs = [results[d] for d in step["dependencies"]]
        verb, _, key = step["operation"].partition(" ")
        key = key or argument  # "query" has the attribute type as its argument
        result: Any
        if verb == "select":
            result = argument if argument == "scene" else [o for o in objects if is_a(o, argument)]
        elif verb == "filter":
            negated = re.fullmatch(r"not\((.*)\)", argument)
            wanted = negated[1] if negated else argument
            result = [o for o in inputs[0] if (value(o, key) == wanted) == (negated is None)]
        elif verb == "relate":
            noun, relation, _ = argument.split(",")
            anchor = the(inputs[0])
            result = [o for o in objects if is_a(o, noun) and relation_holds(o, relation, anchor)]
        elif verb == "exist":
            result = "yes" if inputs[0] else "no"
        elif verb in ("or", "and"):
            test = any if verb == "or" else all
            result = "yes" if test(answer == "yes" for answer in inputs) else "no"
        elif verb in ("same", "different"):
            equal = value(the(inputs[0]), key) == value(the(inputs[1]), key)
            result = "yes" if equal == (verb == "same") else "no"
        elif key == "rel":
            noun, relations, _ = argument.split(",")
            subject, anchor = the(ids), the(inputs[0])
            assert is_a(subject, noun)
            true = [r for r in relations.split("|") if relation_holds(subject, r, anchor)]
            if verb == "choose":
                result = re.sub(r"to the (left|right) of", r"\1", the(true))
            else:
                result = "yes" if true else "no"
        else:
            if inputs[0] == "scene":
                result = scene["location" if key == "place" else "weather"]
            else:
                result = value(the(inputs[0]), key)
            if verb == "verify":
                result = "yes" if result == argument else "no"
                results.append(result)
                continue
            result = result.split("-")[0]  # "five" of "five-toothed"
            if verb == "choose":
                result = the([option for option in argument.split("|") if option == result])
            else:
                assert verb == "query"
        results.append(result)
    return results[-1]


def test_every_answer_follows_from_the_scene_graph(questions, scenes):
    for records in questions.values():
        for question in records.values():
            answer = run_program(question, scenes[question["imageId"]])
            assert answer == question["answer"], question["question"]


def test_relations_and_positions_are_never_close_calls(questions, scenes):
    for scene in scenes.values():
        centers = {
            o: (v["x"] + v["w"] / 2, v["y"] + v["h"] / 2) for o, v in scene["objects"].items()
        }
        axis = {
            "to the left of": (0, 1),
            "to the right of": (0, -1),
            "above": (1, 1),
            "below": (1, -1),
        }
        for object_id, item in scene["objects"].items():
            for relation in item["relations"]:
                if relation["name"] == TOUCHING:
                    continue
                which, sign = axis[relation["name"]]
                distance = sign * (centers[relation["object"]][which] - centers[object_id][which])
                assert distance > 12
    for question in questions["train_all"].values():
        if question["types"]["detailed"].startswith("position"):
            scene = scenes[question["imageId"]]
            item = scene["objects"][next(iter(question["annotations"]["question"].values()))]
            x, y = item["x"] + item["w"] / 2, item["y"] + item["h"] / 2
            horizontal = "hposition" in question["semantic"][-1]["operation"] + str(
                question["semantic"][-1]["argument"]
            )
            assert abs((x if horizontal else y) - scene["width"] / 2) > 8


def test_records_have_gqas_fields_and_the_wording_is_sound(questions):
    for records in questions.values():
        for question_id, question in records.items():
            assert question.keys() == {
                "semantic",
                "semanticStr",
                "entailed",
                "equivalent",
                "question",
                "imageId",
                "isBalanced",
                "groups",
                "answer",
                "annotations",
                "types",
                "fullAnswer",
            }
            assert question_id.startswith(question["imageId"])
            text = question["question"]
            assert text.endswith("?")
            assert text[0].isupper()
            assert len(text.split()) < 24
            assert "{" not in text + question["fullAnswer"]
            assert not re.search(r"\ba [aeio]|\ban [^aeio]", text + " " + question["fullAnswer"])
            assert question["fullAnswer"].endswith(".")
            assert question["answer"] == question["answer"].lower()
            if question["answer"] in ("yes", "no"):
                assert question["fullAnswer"].lower().startswith(question["answer"])


def test_annotated_words_name_their_objects(questions, scenes):
    for question in questions["val_all"].values():
        objects = scenes[question["imageId"]]["objects"]
        for part, sentence in (("question", "question"), ("fullAnswer", "fullAnswer")):
            words = question[sentence].split()
            for span, object_id in question["annotations"][part].items():
                start, _, end = span.partition(":")
                named = " ".join(words[int(start) : int(end or int(start) + 1)]).rstrip("?.,")
                item = objects[object_id]
                noun = next(
                    n for n in (*CATEGORY_NAMES, "shape", item["name"]) if named.endswith(n)
                )
                assert noun in ("shape", item["name"]) or item["name"] in CATEGORY_NAMES[noun]
                assert set(named.removesuffix(noun).split()) <= set(item["attributes"])
        for object_id in question["annotations"]["answer"].values():
            assert objects[object_id]["name"] == question["answer"]


def test_entailed_and_equivalent_questions_are_of_the_same_image(questions, scenes):
    entailing = 0
    for split in SPLITS:
        records = questions[f"{split}_all"]
        for question_id, question in records.items():
            assert question_id in question["equivalent"]
            assert question_id not in question["entailed"]
            entailing += bool(question["entailed"])
            for other in question["entailed"] + question["equivalent"]:
                assert records[other]["imageId"] == question["imageId"]
            for other in question["equivalent"]:
                assert records[other]["semanticStr"] == question["semanticStr"]
                assert records[other]["answer"] == question["answer"]
    assert entailing > 0.5 * sum(len(questions[f"{split}_all"]) for split in SPLITS)


def test_entailment_holds_in_other_scenes(questions, scenes):
    """Where another scene gives the premise its answer, it gives the conclusion its own."""
    checked = 0
    pool = list(scenes.values())
    for question in list(questions["val_all"].values())[:300]:
        for other_id in question["entailed"][:6]:
            other = questions["val_all"][other_id]
            if "rel" in other["semantic"][-1]["operation"] + question["semantic"][-1]["operation"]:
                continue  # these programs name objects by id
            for scene in pool[:30]:
                try:
                    if run_program(question, scene) != question["answer"]:
                        continue
                    answer = run_program(other, scene)
                except AssertionError:
                    continue  # a presupposition of one of them fails here
                checked += 1
                assert answer == other["answer"], (question["question"], other["question"])
    assert checked > 200


def test_masks_match_boxes_and_objects_stay_visible_and_large_enough(world, folder, scenes):
    masks = {}
    for split in SPLITS:
        graphs = read_scene_graphs(folder / "sceneGraphs" / f"{split}_sceneGraphs.json")
        masks |= read_object_masks(folder, split, graphs)
    for image_id, scene in scenes.items():
        image = Image.open(folder / "images" / f"{image_id}.jpg")
        decoded = [mask.decode() for mask in masks[image_id]]
        assert {image.size[::-1], (scene["height"], scene["width"])} == {m.shape for m in decoded}
        assert len(scene["objects"]) in world.object_counts
        assert np.sum(decoded, axis=0).max() == 1
        for mask, item in zip(decoded, scene["objects"].values(), strict=True):
            rows, columns = np.nonzero(mask)
            assert (item["x"], item["y"]) == (columns.min(), rows.min())
            assert item["w"] == columns.max() - columns.min() + 1
            assert item["h"] == rows.max() - rows.min() + 1
            side = max(item["w"], item["h"])
            small, large = (17, 30) if world is SHAPES else (14, 25)
            assert side >= small
            assert (side >= large) == ("large" in item["attributes"])


def test_objects_are_mostly_visible(world):
    # A neighbor that touches a small object hides up to a quarter of it.
    least = 0.8 if world is SHAPES else 0.7
    for index in range(30):
        scene = sample_scene(random.Random(index), index, world.side, world)
        _, together = render(scene, np.random.default_rng(0))
        for number, item in enumerate(scene.objects, start=1):
            alone = replace(scene, objects=(item,))
            _, single = render(alone, np.random.default_rng(0))
            assert (together == number).sum() >= least * (single == 1).sum()


def test_splits_are_disjoint_and_all_types_occur_in_each(questions, scenes):
    ids: set[str] = set()
    images: set[str] = set()
    for split in SPLITS:
        every, balanced = questions[f"{split}_all"], questions[f"{split}_balanced"]
        assert not ids & every.keys()
        ids |= every.keys()
        shown = {question["imageId"] for question in every.values()}
        assert not images & shown
        images |= shown
        assert balanced == {key: q for key, q in every.items() if q["isBalanced"]}
        assert 40 <= len(every) / len(shown) <= 70
        assert 12 <= len(balanced) / len(shown) <= 16
        for records in (every, balanced):
            structural = {q["types"]["structural"] for q in records.values()}
            semantic = {q["types"]["semantic"] for q in records.values()}
            assert structural == {"query", "verify", "choose", "compare", "logical"}
            assert semantic == {"obj", "attr", "cat", "rel", "global"}
    assert images == scenes.keys()
    assert len(images) == 300


def test_choices_contain_the_answer(folder, questions):
    for split in SPLITS:
        choices = load(folder / "choices" / f"{split}_choices.json")
        assert choices.keys() == questions[f"{split}_all"].keys()
        for question_id, question in questions[f"{split}_all"].items():
            choice = choices[question_id]
            assert question["answer"] in choice["plausible"]
            assert set(choice["plausible"]) <= set(choice["valid"])
            if question["types"]["structural"] != "query":
                assert len(choice["valid"]) == 2


# --- balance ---


def reasoning_steps(question: Record) -> int:
    """Steps as the GQA authors' evaluation counts them."""
    steps = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    return sum(not re.search("exist|query: name|choose name", step) for step in steps)


def test_answers_are_balanced_and_most_questions_are_short(questions):
    for split in SPLITS:
        balanced = list(questions[f"{split}_balanced"].values())
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for question in balanced:
            answers[question["types"]["detailed"]][question["answer"]] += 1
        for counts in answers.values():
            assert counts["yes"] == counts["no"]
        share = Counter(question["types"]["structural"] for question in balanced)
        binary = share["verify"] + share["logical"] + share["compare"]
        assert 0.42 < share["query"] / len(balanced) < 0.58
        assert 0.30 < binary / len(balanced) < 0.44
        short = sum(reasoning_steps(question) <= 2 for question in balanced)
        assert short / len(balanced) > 0.6
        first = [
            question["semantic"][-1]["argument"].split("|")[0].split(",")[-1]
            for question in balanced
            if question["types"]["structural"] == "choose"
        ]
        right = sum(
            option.removeprefix("to the ").removesuffix(" of") == question["answer"]
            for option, question in zip(
                first,
                (q for q in balanced if q["types"]["structural"] == "choose"),
                strict=True,
            )
        )
        assert right * 2 == len(first)


def word_features(question: Record) -> set[str]:
    words = ["^", *re.findall("[a-z]+", question["question"].lower())]
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def test_a_predictor_that_sees_only_the_question_stays_under_half(questions):
    train = list(questions["train_balanced"].values())
    testdev = list(questions["testdev_balanced"].values())

    majority: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in train:
        majority[question["types"]["detailed"], question["groups"]["local"]][
            question["answer"]
        ] += 1
        majority[question["types"]["detailed"], ""][question["answer"]] += 1
    right = 0
    for question in testdev:
        detailed = question["types"]["detailed"]
        counts = majority.get((detailed, question["groups"]["local"])) or majority[detailed, ""]
        right += counts.most_common(1)[0][0] == question["answer"]
    assert right / len(testdev) < 0.5

    vocabulary = {word for question in train for word in word_features(question)}
    columns = {word: column for column, word in enumerate(sorted(vocabulary))}
    answers = sorted({question["answer"] for question in train})
    counts = np.full((len(answers), len(columns)), 0.1)
    totals = np.full(len(answers), 1.0)
    for question in train:
        row = answers.index(question["answer"])
        totals[row] += 1
        counts[row, [columns[word] for word in word_features(question)]] += 1
    likelihood = np.log(counts / totals[:, None])
    right = 0
    for question in testdev:
        known = [columns[word] for word in word_features(question) if word in columns]
        scores = np.log(totals) + likelihood[:, known].sum(axis=1)
        right += answers[int(scores.argmax())] == question["answer"]
    assert right / len(testdev) < 0.5


# --- the fine world ---


def test_fine_parts_are_all_that_tells_kinds_and_values_apart():
    """At 256 pixels every value looks different; the difference is a few pixels of the object."""
    scene = sample_scene(random.Random(0), 0, FINE.side, FINE)
    item = scene.objects[0]
    for part, names in FINE.parts.items():
        masks = []
        for value in FINE.attributes[part]:
            attributes = {"color": "red", "outline": "thin-edged", "size": "large", part: value}
            drawn = replace(item, name=names[0], attributes=attributes, x=128, y=128, radius=17.0)
            masks.append(render(replace(scene, objects=(drawn,)), np.random.default_rng(0))[1] > 0)
        for one, other in combinations(masks, 2):
            assert 6 <= (one != other).sum() <= 0.25 * one.sum(), part


def test_objects_touch_where_the_scene_graph_says_so(folder, world):
    if world is not FINE:
        return
    graphs = read_scene_graphs(folder / "sceneGraphs" / "train_sceneGraphs.json")
    touching = 0
    for image_id, masks in read_object_masks(folder, "train", graphs).items():
        objects = graphs[image_id].objects
        grown = [binary_dilation(mask.decode(), iterations=1) for mask in masks]
        for (one, first), (other, second) in combinations(zip(objects, grown, strict=True), 2):
            meet = bool((first & second).any())
            assert meet == ((TOUCHING, other.id) in one.relations)
            touching += meet
    assert touching > 20


def test_a_word_means_the_same_in_every_world():
    for world in WORLDS.values():
        for key, values in world.values.items():
            assert all(KEY_OF[value] == key for value in values)
        for category, names in world.categories.items():
            assert all(CATEGORY_OF[name] == category for name in names)


# --- files ---


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_mini_gqa(tmp_path / name, images=12, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    ours, theirs = digest(tmp_path / "a"), digest(tmp_path / "c")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] != theirs[name] for name in ours)


def test_a_complete_data_set_is_kept_and_other_folders_are_rejected(tmp_path):
    out = tmp_path / "set"
    assert make_mini_gqa(out, images=10).created
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = make_mini_gqa(out, images=10)
    assert not again.created
    assert sum(counts["images"] for counts in again.counts.values()) == 10
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match="seed 0 where 1 is wanted"):
        make_mini_gqa(out, images=10, seed=1)
    with pytest.raises(UserError, match="world shapes where fine is wanted"):
        make_mini_gqa(out, images=10, image_size=128, world="fine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="no mini-GQA data set"):
        make_mini_gqa(tmp_path / "mine", images=10)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, interruption):
    calls = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 5:
            raise interruption
        return original(*arguments)

    original = writer.render
    monkeypatch.setattr(writer, "render", interrupted)
    with pytest.raises(interruption):
        make_mini_gqa(tmp_path / "set", images=10)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_set_and_wrong_arguments_end_with_code_2(tmp_path, capsys):
    main([str(tmp_path / "set"), "--images", "10"])
    assert "8 images" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    for arguments in (
        ("other", "--images", "9"),
        ("other", "--images", "many"),
        ("other", "--image-size", "20"),
        ("other", "--seed", "-1"),
        ("file",),
        ("file/below",),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / arguments[0]), *arguments[1:]])
        assert ended.value.code == 2, arguments
        assert "error:" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "set"]


def test_the_module_runs_as_a_command_and_gives_the_same_bytes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lavis_ext.datasets.mini_gqa", tmp_path / "a", "--images", "12"],
        capture_output=True,
        text=True,
        check=False,
        # Another hash seed orders sets of strings differently.
        env=os.environ | {"PYTHONHASHSEED": "12345"},
    )
    assert done.returncode == 0, done.stderr
    make_mini_gqa(tmp_path / "b", images=12)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
