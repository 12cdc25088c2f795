"""Wrong files for the scoring commands: one clear sentence, exit code 2, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.evaluation import compare, leaderboard
from lavis_ext.evaluation.gqa.__main__ import main
from tests.gqa_rule import write_files

pytestmark = pytest.mark.beyond_core

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def good(mini_gqa: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Consistent files of mini-GQA's validation split."""
    folder = tmp_path_factory.mktemp("gqa")
    questions = mini_gqa / "questions" / "val_all_questions.json"
    choices = mini_gqa / "choices" / "val_choices.json"
    write_files(questions, choices, folder)
    return {
        "questions": questions,
        "choices": choices,
        "scenes": mini_gqa / "sceneGraphs" / "val_sceneGraphs.json",
        "predictions": folder / "predictions.json",
        "attentions": folder / "maps.json",
    }


@pytest.fixture
def refused(good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """``refused("--consistency", predictions=[...])``: the command's error for that content."""

    def run(*options: str, **changed: Any) -> str:
        paths = dict(good)
        for name, content in changed.items():
            path = content if isinstance(content, Path) else tmp_path / f"{name}.json"
            if not isinstance(content, Path):
                path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths[name] = path
        with pytest.raises(SystemExit) as ending:
            main([*(f"--{name}={path}" for name, path in paths.items()), *options])
        assert ending.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        return said.err

    return run


def content_of(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_unchanged_files_are_valid(good: dict[str, Path]) -> None:
    main([*(f"--{name}={path}" for name, path in good.items()), "--consistency"])


def test_missing_predictions_are_counted_and_named(refused: Refused, good: dict[str, Path]) -> None:
    records = content_of(good["questions"])
    balanced = [name for name, record in records.items() if record["isBalanced"]]
    kept = [p for p in content_of(good["predictions"]) if p["questionId"] not in balanced[:5]]
    said = refused(predictions=kept)
    assert (
        f"no prediction for 5 of {len(balanced)} questions ({', '.join(balanced[:3])}, ...)" in said
    )
    kept = [p for p in content_of(good["predictions"]) if p["questionId"] != balanced[0]]
    assert "no prediction for 1 of 72 questions (" in refused(predictions=kept)


def test_consistency_needs_predictions_for_entailed_questions(
    refused: Refused, good: dict[str, Path]
) -> None:
    records = content_of(good["questions"])
    balanced = [
        p for p in content_of(good["predictions"]) if records[p["questionId"]]["isBalanced"]
    ]
    assert "no prediction for" in refused("--consistency", predictions=balanced)


def test_predictions_for_unknown_questions_are_errors(
    refused: Refused, good: dict[str, Path]
) -> None:
    more = [*content_of(good["predictions"]), {"questionId": "999", "prediction": "yes"}]
    said = refused(predictions=more)
    assert "1 question that" in said
    assert "(999); are they of another split?" in said


def test_repeated_predictions_are_errors(refused: Refused, good: dict[str, Path]) -> None:
    predictions = content_of(good["predictions"])
    said = refused(predictions=[*predictions, *predictions[:4]])
    first = ", ".join(each["questionId"] for each in predictions[:3])
    assert f"4 questions predicted more than once ({first}, ...)" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the prediction file is empty"),
        ("[]", "but the file is empty"),
        ("[{", "is cut off"),
        ('{"1": {"score": 3}}', 'expected a list of {"questionId": ..., "prediction": ...}, but'),
        ('{"1": "yes"}', "1 question that"),
        ('"yes"', "but the file is a string"),
        ('["yes"]', "but record 0 (counted from 0) is a string"),
        ('[{"question_id": "1", "score": 3}]', "the record of question 1 has question_id, score"),
        ('[{"score": 3}]', "but record 0 (counted from 0) has score"),
        ('[{"questionId": true, "prediction": "yes"}]', "has questionId, prediction"),
        ('[{"questionId": "1", "prediction": ["a", "b"]}]', "question 1 is a list, not a string"),
        ('[{"questionId": "1", "prediction": 1e999}]', "is an infinite number, not a string"),
        ('[{"questionId": "1", "prediction": NaN}]', "question 1 is NaN, not a string"),
        ('[{"questionId": "1", "prediction": true}]', "question 1 is a boolean, not a"),
        ('[{"questionId": "1", "prediction": null}]', "question 1 is null, not a string"),
    ],
)
def test_predictions_of_another_shape_are_errors(
    refused: Refused, content: str, words: str
) -> None:
    assert words in refused(predictions=content)


@pytest.mark.parametrize("name", ["questions", "predictions", "choices", "scenes", "attentions"])
def test_missing_files_are_errors(refused: Refused, tmp_path: Path, name: str) -> None:
    missing = tmp_path / "missing.json"
    said = refused(**{name: missing})
    assert f"{missing}: the" in said
    assert "can't be read (No such file or directory)" in said


def test_choices_and_scenes_of_another_split(refused: Refused, mini_gqa: Path) -> None:
    said = refused(choices=mini_gqa / "choices" / "testdev_choices.json")
    assert "no choices for 72 questions (" in said
    assert "another split?" in said
    said = refused(scenes=mini_gqa / "sceneGraphs" / "testdev_sceneGraphs.json")
    assert "no scene graph for 4 of 4 images (" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[1]]", "but record 0 (counted from 0) is a list"),
        ('{"1": ["yes"]}', "but question 1 has no such lists"),
        ('{"1": {"valid": ["yes"]}}', "but question 1 has no such lists"),
    ],
)
def test_choices_of_another_shape_are_errors(refused: Refused, content: str, words: str) -> None:
    assert words in refused(choices=content)


def test_scene_graphs_without_a_named_object_are_errors(
    refused: Refused, good: dict[str, Path]
) -> None:
    graphs = content_of(good["scenes"])
    for graph in graphs.values():
        graph["objects"] = dict(list(graph["objects"].items())[:1])
    assert "the object '" in refused(scenes=graphs)


def test_maps_of_uneven_size(refused: Refused, good: dict[str, Path]) -> None:
    attentions = content_of(good["attentions"])
    attentions[3]["attention"] = [[0.1] * 7] * 6
    said = refused(attentions=attentions)
    assert f"question {attentions[3]['questionId']} has 6x7, those before it 7x7" in said
    attentions[3]["attention"] = [[0.1] * 7] * 6 + [[0.1] * 5]
    assert "of uneven size: its rows differ in length" in refused(attentions=attentions)


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ([0.5, 0.5], "is not rows of numbers"),
        ([], "is not rows of numbers"),
        ([["a"]], "is not rows of numbers"),
        ("all", "is a string"),
        ([[float("nan")]], "aren't finite"),
    ],
)
def test_attentions_that_are_not_maps_are_errors(
    refused: Refused, attention: Any, words: str
) -> None:
    assert words in refused(attentions=[{"questionId": "1", "attention": attention}])


def test_maps_of_a_size_other_than_requested_are_errors(refused: Refused) -> None:
    said = refused("--mapSize=9", attentions=[{"questionId": "1", "attention": [[0.5, 0.5]]}])
    assert "the map of question 1 is 1x2, not 9x9 (--mapSize)" in said


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ([0.1, 0.1, 0.2, 0.2], "has 4 numbers, not 5"),
        ([0.1, 0.1, 0.1, 0.2, 0.5], "isn't 0 <= x0 < x1 <= 1"),
        ([10, 20, 30, 40, 0.5], "isn't 0 <= x0 < x1 <= 1"),
    ],
)
def test_regions_that_are_not_boxes_are_errors(
    refused: Refused, region: list[float], words: str
) -> None:
    said = refused("--objectFeatures", attentions=[{"questionId": "1", "attention": [region]}])
    assert words in said


def test_missing_repeated_and_unknown_attentions_are_errors(
    refused: Refused, good: dict[str, Path]
) -> None:
    attentions = content_of(good["attentions"])
    assert "has attention more than once" in refused(attentions=[*attentions, attentions[0]])
    assert "no attention for" in refused(attentions=attentions[:4])
    unknown = {**attentions[0], "questionId": "999"}
    assert "doesn't have (999)" in refused(attentions=[*attentions, unknown])


def test_questions_that_cannot_be_scored_are_errors(
    refused: Refused, good: dict[str, Path]
) -> None:
    records = content_of(good["questions"])
    without = {name: {**each, "answer": None} for name, each in records.items()}
    said = refused(questions=without)
    assert "72 of 72 questions have no `answer` (" in said
    assert "lavis_ext.evaluation.leaderboard" in said
    outside = {name: {**each, "isBalanced": False} for name, each in records.items()}
    assert "none of its 209 questions is in the balanced subset" in refused(questions=outside)
    odd = {name: {**each, "semantic": "select"} for name, each in records.items()}
    assert "of another form than GQA's" in refused(questions=odd)


def test_options_that_can_only_fail_later(refused: Refused, tmp_path: Path) -> None:
    assert "there is no folder" in refused(f"--json={tmp_path / 'none' / 'scores.json'}")
    assert "is a folder; name a file" in refused(f"--json={tmp_path}")
    assert "--resamples is 10; it must be 0" in refused("--resamples=10")
    assert "--seed is -1; it must not be negative" in refused("--seed=-1")


def test_comparison_and_leaderboard_reject_the_same_files(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.json"
    short.write_text(json.dumps(content_of(good["predictions"])[:10]))
    questions = f"--questions={good['questions']}"
    with pytest.raises(SystemExit) as ending:
        compare.main([str(good["predictions"]), str(short), questions])
    assert ending.value.code == 2
    assert f"{short}: no prediction for" in capsys.readouterr().err
    out = tmp_path / "server.json"
    with pytest.raises(SystemExit) as ending:
        leaderboard.main([questions, f"--predictions={short}", f"--out={out}"])
    assert ending.value.code == 2
    assert "no prediction for 199 questions (" in capsys.readouterr().err
    assert not out.exists()
