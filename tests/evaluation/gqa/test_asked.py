"""Predictions for a part of the questions, and predictions that are only spelled otherwise."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.evaluation import compare
from lavis_ext.evaluation.gqa.__main__ import main as score
from lavis_ext.evaluation.gqa.spelling import normalized

ANSWERS = ["cup", "yes", "red", "no", "dog", "blue"]
Made = Callable[..., Path]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six questions; the first entails a question that isn't balanced."""
    records: dict[str, Any] = {
        str(number): {"question": "What?", "imageId": str(number // 2), "answer": answer}
        for number, answer in enumerate(ANSWERS)
    }
    records["0"]["entailed"] = ["6"]
    records["6"] = {**records["0"], "answer": "yes", "isBalanced": False, "entailed": []}
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """``made("a", {0: "cup"}, stated=1)``: a run's predictions, and the count that it states."""

    def make(run: str, predictions: dict[int, str], stated: int | None = None) -> Path:
        folder = tmp_path / run
        folder.mkdir()
        path = folder / "val_predictions.json"
        records = [{"questionId": str(i), "prediction": text} for i, text in predictions.items()]
        path.write_text(json.dumps(records))
        if stated is not None:
            (folder / "val_scores.json").write_text(json.dumps({"questions": stated}))
        return path

    return make


def scored(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    out = tmp_path / "scores.json"
    score([*map(str, arguments), f"--json={out}"])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def refused(
    capsys: pytest.CaptureFixture[str], program: Callable[..., None], arguments: Sequence[object]
) -> str:
    with pytest.raises(SystemExit) as ended:
        program([*map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_runs_sample_is_scored_on_the_questions_that_it_asked(
    questions: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("a", {1: "yes", 3: "yes", 4: "dog"}, stated=3)
    found = scored(tmp_path, f"--questions={questions}", f"--predictions={path}")
    assert found["questions"] == found["metrics"]["accuracy"]["count"] == 3
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert "Scoring the 3 of 6 questions that were asked." in capsys.readouterr().err


def test_a_part_that_no_run_states_needs_an_option(
    questions: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("a", {1: "yes", 3: "yes"})
    arguments = [f"--questions={questions}", f"--predictions={path}"]
    said = refused(capsys, score, arguments)
    assert "no prediction for 4 of 6 questions (0, 2, 4, ...)" in said
    assert "--only-asked scores the others" in said
    assert scored(tmp_path, *arguments, "--only-asked")["questions"] == 2


def test_a_part_of_a_runs_predictions_is_not_taken_for_all_of_them(
    questions: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("a", {1: "yes", 3: "yes"}, stated=3)
    said = refused(capsys, score, [f"--questions={questions}", f"--predictions={path}"])
    assert "Its run states that 3 were asked, but 2 are here. If they weren't asked, --only" in said


def test_consistency_is_left_out_if_the_entailed_questions_were_not_asked(
    questions: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("a", {0: "cup", 1: "yes"}, stated=2)
    arguments = [f"--questions={questions}", "--consistency"]
    found = scored(tmp_path, *arguments, f"--predictions={path}")
    assert "1 entailed question wasn't asked (6)" in found["not_computed"]["consistency"]
    path = made("b", {0: "cup", 1: "yes", 6: "yes"}, stated=2)
    found = scored(tmp_path, *arguments, f"--predictions={path}")
    assert found["metrics"]["consistency"]["value"] == 1
    path = made("c", dict(enumerate(ANSWERS)))
    assert "no prediction for 1 question (6)" in refused(
        capsys, score, [*arguments, f"--predictions={path}"]
    )


def test_two_samples_are_compared_on_the_questions_asked_in_both(
    questions: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = made("a", {0: "cup", 1: "yes", 2: "blue"}, stated=3)
    b = made("b", {1: "no", 2: "red", 3: "no"}, stated=3)
    out = tmp_path / "compared.json"
    compare.main([str(a), str(b), f"--questions={questions}", f"--json={out}"])
    found = json.loads(out.read_text())
    assert found["questions"] == 2
    assert [(each["id"], each["change"]) for each in found["changes"]] == [
        ("1", "lost"),
        ("2", "gained"),
    ]
    assert "Scoring the 2 of 6 questions" in capsys.readouterr().err
    other = made("c", {5: "red"}, stated=1)
    said = refused(capsys, compare.main, [a, other, f"--questions={questions}"])
    assert "none of the questions was asked in both" in said


def test_answers_spelled_otherwise_are_counted_and_may_be_taken_as_right(
    questions: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("a", dict(enumerate(["Cup", " yes", "red.", "no", "a dog", "green"])))
    arguments = [f"--questions={questions}", f"--predictions={path}"]
    assert scored(tmp_path, *arguments)["metrics"]["accuracy"]["value"] == pytest.approx(1 / 6)
    said = capsys.readouterr().err
    assert "3 of 6 predictions differ from the answer only by capitals, spaces or an end" in said
    assert "('Cup', not 'cup')" in said
    found = scored(tmp_path, *arguments, "--normalize")
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert "differ from the answer" not in capsys.readouterr().err
    compare.main([str(path), str(path), arguments[0]])
    assert capsys.readouterr().err.count("3 of 6 predictions differ") == 2
    right = made("b", dict(enumerate(ANSWERS)))
    compare.main([str(path), str(right), arguments[0], "--normalize", "--resamples=0"])
    said = capsys.readouterr()
    assert "6 questions, 2 answered differently" in said.out
    assert "differ from the answer" not in said.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Yes. ", "yes"),
        ("living  Room !", "living room"),
        ("3.5", "3.5"),
        ("U.S.", "u.s"),
        ("", ""),
    ],
)
def test_normalization_leaves_words_and_inner_marks(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_an_output_that_cannot_be_a_file_is_refused_before_the_work(
    questions: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--questions={questions}", f"--predictions={made('a', {0: 'cup'})}", "--only-asked"]
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "a named pipe, not a file"), ("n" * 300, "File name too long")):
        assert f"can't be written ({said})" in refused(
            capsys, score, [*given, f"--json={tmp_path / name}"]
        )
    assert (tmp_path / "pipe").is_fifo()
