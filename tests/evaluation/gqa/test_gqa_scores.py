"""GQA's metrics: by hand, and against the metrics of the authors' evaluation script."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph
from lavis_ext.evaluation.gqa.__main__ import main
from lavis_ext.evaluation.gqa.accuracy import by_kind
from lavis_ext.evaluation.gqa.choices import AnswerChoices, within_choices
from lavis_ext.evaluation.gqa.consistency import consistency
from lavis_ext.evaluation.gqa.distribution import AnswerDistribution
from lavis_ext.evaluation.gqa.grounding import (
    grounding_score,
    grounding_scores,
    map_cells,
    object_boxes,
)
from lavis_ext.evaluation.gqa.outcomes import METRICS, judge
from lavis_ext.evaluation.gqa.questions import GqaQuestion, balanced_questions
from lavis_ext.evaluation.gqa.scores import resample, score
from tests.gqa_rule import write_files

AUTHORS = json.loads(
    (Path(__file__).parents[2] / "assets" / "parity" / "gqa_scores.json").read_text(
        encoding="utf-8"
    )
)


def question(name: str, answer: str = "red", **known: Any) -> GqaQuestion:
    fields: dict[str, Any] = {
        "image_id": name,
        "words": 4,
        "steps": 2,
        "structural": "query",
        "semantic": "attr",
        "detailed": "directOf",
        "group": "color",
        "entailed": (),
        "objects": (),
    }
    return GqaQuestion(id=name, answer=answer, **(fields | known))


@pytest.fixture(scope="module")
def files(mini_gqa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imperfect predictions and attentions for all training questions of mini-GQA."""
    folder = tmp_path_factory.mktemp("gqa")
    questions = mini_gqa / "questions" / "train_all_questions.json"
    write_files(questions, mini_gqa / "choices" / "train_choices.json", folder)
    return folder


def scored(mini_gqa: Path, files: Path, out: Path, *options: str) -> dict[str, Any]:
    """The JSON that the command writes for them."""
    given = {
        "--questions": mini_gqa / "questions" / "train_all_questions.json",
        "--predictions": files / "predictions.json",
        "--choices": mini_gqa / "choices" / "train_choices.json",
        "--scenes": mini_gqa / "sceneGraphs" / "train_sceneGraphs.json",
        "--json": out,
    }
    main([*(str(part) for pair in given.items() for part in pair), "--consistency", *options])
    written: dict[str, Any] = json.loads(out.read_text())
    return written


def test_every_metric_equals_that_of_the_authors_script(
    mini_gqa: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If mini-GQA's drawing has changed, the stored metrics have to be made anew: see the README
    beside them."""
    maps = str(files / "maps.json")
    scores = scored(mini_gqa, files, tmp_path / "s.json", "--attentions", maps)
    units = {metric: 1 if metric == "distribution" else 100 for metric in METRICS}
    ours = {name: each["value"] * units[name] for name, each in scores["metrics"].items()}
    assert ours == pytest.approx(AUTHORS["metrics"], rel=1e-12)
    for breakdown, kinds in AUTHORS["breakdowns"].items():
        mine = scores["breakdowns"][breakdown]
        assert {kind: (100 * f["value"], f["count"]) for kind, f in mine.items()} == {
            kind: (pytest.approx(value, rel=1e-12), count) for kind, (value, count) in kinds.items()
        }
    assert scores["not_computed"] == {}
    printed = capsys.readouterr().out
    for value in AUTHORS["metrics"].values():
        assert f" {value:.2f} " in printed


def test_regions_follow_the_formula_of_maps(mini_gqa: Path, files: Path, tmp_path: Path) -> None:
    attentions = ("--attentions", str(files / "regions.json"), "--objectFeatures")
    scores = scored(mini_gqa, files, tmp_path / "s.json", *attentions, "--resamples", "0")
    grounding = scores["metrics"]["grounding"]
    assert 100 * grounding["value"] == pytest.approx(AUTHORS["grounding_of_regions"], rel=1e-12)
    assert grounding["low"] is None


def test_command_lines_of_the_authors_script_work(
    mini_gqa: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in {
        "train_all_questions": mini_gqa / "questions" / "train_all_questions.json",
        "train_choices": mini_gqa / "choices" / "train_choices.json",
        "train_sceneGraphs": mini_gqa / "sceneGraphs" / "train_sceneGraphs.json",
        "train_attentions": files / "maps.json",
        "mine_train": files / "predictions.json",
    }.items():
        (tmp_path / f"{name}.json").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    theirs = ["--tier=train", "--predictions=mine_{tier}.json", "--consistency"]
    main([*theirs, "--grounding", "--mapSize=7", "--json=s.json"])
    metrics = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert metrics.keys() == AUTHORS["metrics"].keys()
    assert 100 * metrics["grounding"]["value"] == pytest.approx(AUTHORS["metrics"]["grounding"])
    main([*theirs, "--json=s.json"])
    assert "grounding" not in json.loads((tmp_path / "s.json").read_text())["metrics"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--questions=q.json"], "--predictions is needed, or --tier"),
        (["--questions=q.json", "--predictions=p.json", "--grounding"], "--grounding needs --sce"),
    ],
)
def test_files_that_are_not_named_are_asked_for(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_missing_metrics_have_a_reason(
    mini_gqa: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = mini_gqa / "questions" / "train_all_questions.json"
    main(["--questions", str(questions), "--predictions", str(files / "predictions.json")])
    printed = capsys.readouterr().out.split("not computed  reason\n")[1]
    assert [" ".join(line.split()) for line in printed.splitlines()] == [
        "consistency not requested (--consistency)",
        "validity needs a choices file (--choices)",
        "plausibility needs a choices file (--choices)",
        "grounding needs attentions and scene graphs (--attentions, --scenes)",
    ]


def test_consistency_needs_the_file_of_all_questions(
    mini_gqa: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    balanced = mini_gqa / "questions" / "train_balanced_questions.json"
    names = json.loads(balanced.read_text()).keys()
    predictions = json.loads((files / "predictions.json").read_text())
    kept = tmp_path / "p.json"
    kept.write_text(json.dumps([each for each in predictions if each["questionId"] in names]))
    main(["--questions", str(balanced), "--predictions", str(kept), "--consistency"])
    printed = capsys.readouterr().out
    assert "consistency   train_balanced_questions.json lacks" in printed
    assert "give the file of all questions" in printed


def test_data_without_gqas_own_fields_have_an_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = {
        f"0{i}": {"question": "what is it?", "imageId": str(i), "answer": "cup"} for i in range(4)
    }
    (tmp_path / "q.json").write_text(json.dumps(records))
    answers = [{"questionId": name, "prediction": "cup"} for name in records]
    answers[0]["prediction"] = "Cup"  # compared as it stands
    (tmp_path / "p.json").write_text(json.dumps(answers))
    main(
        [
            f"--questions={tmp_path / 'q.json'}",
            f"--predictions={tmp_path / 'p.json'}",
            "--consistency",
        ]
    )
    printed = capsys.readouterr().out
    assert "accuracy  75.00 %" in printed
    assert "consistency   the questions list no entailed ones" in printed
    assert "distribution  no question belongs to an answer group" in printed


def test_only_balanced_questions_are_scored(mini_gqa: Path) -> None:
    everything = read_questions(mini_gqa / "questions" / "val_all_questions.json")
    balanced = read_questions(mini_gqa / "questions" / "val_balanced_questions.json")
    names = balanced.data["question_id"].to_pylist()
    assert [each.id for each in balanced_questions(everything)] == names
    assert [each.id for each in balanced_questions(balanced)] == names
    assert len(everything.take([3, 1]).balanced()) <= 2


def test_consistency_by_hand() -> None:
    questions = [
        question("1", entailed=("3", "4")),
        question("2", entailed=("3",)),  # wrong
        question("3", entailed=()),  # entails none
    ]
    predictions = {"1": "red", "2": "blue", "3": "red", "4": "no"}
    values = consistency(questions, predictions, {"3": "red", "4": "yes"})
    assert values[0] == 0.5
    assert np.isnan(values[1:]).all()


def test_a_question_does_not_entail_itself(tmp_path: Path) -> None:
    record = {"question": "q?", "imageId": "1", "answer": "yes", "entailed": ["01", "02"]}
    (tmp_path / "q.json").write_text(json.dumps({"01": record}))
    (only,) = balanced_questions(read_questions(tmp_path / "q.json"))
    assert only.entailed == ("02",)


def test_steps_leave_out_the_final_operation(tmp_path: Path) -> None:
    def record(*operations: tuple[str, str]) -> dict[str, Any]:
        program = [{"operation": o, "dependencies": [], "argument": a} for o, a in operations]
        return {"question": "a b  c?", "imageId": "1", "answer": "yes", "semantic": program}

    records = {
        "01": record(("select", "cup (1)"), ("exist", "?")),
        "02": record(("select", "cup (1)"), ("query", "color")),
        "03": record(("select", "cup (1)"), ("query", "name")),
        "04": record(("select", "coexisting cup (1)"), ("choose name", "cup|mug")),
    }
    (tmp_path / "q.json").write_text(json.dumps(records))
    questions = balanced_questions(read_questions(tmp_path / "q.json"))
    assert [each.steps for each in questions] == [1, 2, 1, 0]
    assert {each.words for each in questions} == {3}
    assert list(by_kind(questions, "steps")) == ["0", "1", "2"]


def test_choices_by_hand_and_those_of_common_questions() -> None:
    questions = [question("1"), question("2"), question("3", detailed="twoCommon"), question("4")]
    predictions = {"1": "red", "2": "pink", "3": "shape", "4": "cup"}
    choices = AnswerChoices(["red", "pink"], ["red"])
    given = [(name, choices) for name in ("3", "2", "1", "9")]
    valid, plausible = within_choices(questions, predictions, given)
    assert valid[:3].tolist() == [1, 1, 1]
    assert plausible[:3].tolist() == [1, 0, 1]
    assert np.isnan([valid[3], plausible[3]]).all()


def test_chi_square_by_hand() -> None:
    right = ["red"] * 4 + ["blue"] * 4 + ["yes"] * 2
    given = ["red"] * 5 + ["blue", "pink", "pink"] + ["yes"] * 2
    groups = ["color"] * 8 + ["there"] * 2
    questions = [
        question(str(i), answer, group=group)
        for i, (answer, group) in enumerate(zip(right, groups, strict=True))
    ]
    questions.append(question("10", "left", group=None))
    predictions = {str(i): answer for i, answer in enumerate([*given, "right"])}
    distribution = AnswerDistribution(questions, predictions)
    assert len(distribution) == 10
    color = (5 - 4) ** 2 / 4 + (1 - 4) ** 2 / 4
    assert distribution.chi_square(np.ones(11)) == pytest.approx(color * 8 / 10 / 100)
    assert np.isnan(distribution.chi_square(np.zeros(11)))


def test_a_maps_first_index_runs_from_left_to_right() -> None:
    attention = np.zeros((4, 2))
    attention[3, 0] = 1.0  # the last of four columns, the upper of two rows
    cells = map_cells(attention)
    assert cells[cells[:, 4] > 0].tolist() == [[0.75, 0.0, 1.0, 0.5, 1.0]]
    assert grounding_score(np.array([[0.5, 0.0, 1.0, 1.0]]), cells) == 1.0
    assert grounding_score(np.array([[0.0, 0.5, 1.0, 1.0]]), cells) == 0.0


def test_grounding_counts_the_share_of_a_region_that_lies_in_each_object() -> None:
    regions = np.array([[0.0, 0.0, 0.5, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0, 0.75]])
    half_of_the_first = [0.0, 0.0, 0.25, 1.0]
    all_of_the_second = [0.4, 0.4, 1.0, 1.0]
    objects = np.array([half_of_the_first, all_of_the_second, all_of_the_second])
    expected = 0.25 * 0.5 + 2 * (0.25 * 0.04 + 0.75)
    assert grounding_score(objects, regions) == pytest.approx(expected)
    assert grounding_score(np.empty((0, 4)), regions) == 0.0


def test_objects_are_found_in_the_graph_of_their_image() -> None:
    cup = GraphObject("7", "cup", (10, 20, 30, 60), (), ())
    graph = SceneGraph(100, 200, None, None, (cup,))
    assert object_boxes(graph) == {"7": (0.1, 0.1, 0.4, 0.4)}
    attentions = [("1", np.array([[0.1, 0.1, 0.4, 0.4, 0.5]]))]
    asked = [question("1", image_id="i", objects=("7",))]
    assert grounding_scores(asked, {"i": graph}, attentions) == {"1": pytest.approx(0.5)}
    with pytest.raises(KeyError):
        grounding_scores([question("1", image_id="i", objects=("8",))], {"i": graph}, attentions)


def some_questions(rng: np.random.Generator, images: int, each: int) -> list[GqaQuestion]:
    return [
        question(f"{image}-{number}", rng.choice(["red", "blue"]), image_id=str(image))
        for image in range(images)
        for number in range(each)
    ]


def answered(
    questions: Sequence[GqaQuestion], right: Sequence[bool] | np.ndarray
) -> dict[str, str]:
    return {q.id: q.answer if ok else "none" for q, ok in zip(questions, right, strict=True)}


def test_confidence_intervals_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        questions = some_questions(rng, 60, 3)
        # Whole images are easy or hard, for 70 % on average.
        right = rng.random(180) < np.repeat(rng.choice([0.4, 1.0], 60), 3)
        accuracy = score(judge(questions, answered(questions, right)), 200).metrics["accuracy"]
        assert accuracy.low is not None
        assert accuracy.high is not None
        hits += accuracy.low <= 0.7 <= accuracy.high
    assert 180 <= hits <= 199  # 190 are expected, and 3 of deviation


@pytest.mark.parametrize("all_right", [True, False])
def test_a_share_of_0_or_1_is_no_more_certain_than_its_images(all_right: bool) -> None:
    """statsmodels' proportion_confint(8, 8, method="wilson") is 0.6756 to 1."""
    questions = [question(str(i), image_id=str(i // 2)) for i in range(16)]
    found = score(judge(questions, dict.fromkeys(map(str, range(16)), "red" if all_right else "x")))
    accuracy = found.metrics["accuracy"]
    expected = (0.6756, 1) if all_right else (0, 1 - 0.6756)
    assert (accuracy.low, accuracy.high) == pytest.approx(expected, abs=1e-4)
    assert found.breakdowns["words"]["4"].low == pytest.approx(expected[0], abs=1e-4)


def test_questions_of_one_image_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for each in (1, 10):
        questions = some_questions(rng, 50, each)
        right = np.repeat(np.arange(50) % 2 == 0, each)
        accuracy = score(judge(questions, answered(questions, right)), 500).metrics["accuracy"]
        assert accuracy.low is not None
        assert accuracy.high is not None
        widths.append(accuracy.high - accuracy.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_the_distributions_interval_contains_its_value() -> None:
    """Wrong answers that balance out give 0, but more than 0 in nearly every resample."""
    questions = [question(str(i), ["red", "blue"][i % 2]) for i in range(300)]
    predictions = {str(i): ["red", "blue"][i // 2 % 2] for i in range(300)}
    interval = score(judge(questions, predictions), 300).metrics["distribution"]
    assert (interval.value, interval.low) == (0, 0)
    assert interval.high is not None
    assert interval.high > 0


def test_intervals_repeat_and_the_seed_changes_them() -> None:
    questions = some_questions(np.random.default_rng(0), 40, 2)
    outcomes = judge(questions, answered(questions, np.arange(80) % 3 > 0))
    assert score(outcomes, 150, seed=1) == score(outcomes, 150, seed=1)
    assert score(outcomes, 150, seed=1) != score(outcomes, 150, seed=2)
    samples = resample(outcomes, 150, 0).samples
    assert {len(each) for each in samples.values()} == {150}


def test_predictions_of_several_processes_are_judged_without_files() -> None:
    """What ranks gather is a list of pairs, where padding repeats some."""
    questions = [question("1"), question("2", "yes", structural="verify", group=None)]
    shares = [[("1", "red")], [("2", "no"), ("1", "red")]]
    outcomes = judge(questions, dict(pair for share in shares for pair in share))
    scores = score(outcomes, resamples=0)
    assert (scores.metrics["accuracy"].value, scores.metrics["accuracy"].count) == (0.5, 2)
    assert (scores.metrics["binary"].value, scores.metrics["open"].value) == (0.0, 1.0)
    assert list(scores.not_computed) == ["consistency", "validity", "plausibility", "grounding"]
