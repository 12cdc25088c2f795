"""The question-only answerer, and scores beside its score."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.evaluation.above_blind import above_blind, beside_blind
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.evaluation.question_only import QuestionOnly, Settings, question_only
from lavis_ext.runners.launch import started
from tests.runners.test_runner import TINY_MODEL

FEW = replace(Settings(), width=16, epochs=60, batch=2)
QUESTIONS = [f"What is the {noun} {place} the table?" for noun in "abc" for place in ("on", "by")]
ANSWERS = ["plate", "chair", "plate", "chair", "glass", "glass"]


def table_of(path: Path, questions: Sequence[str], answers: Sequence[str | None]) -> QuestionTable:
    records = {
        f"{n:03d}": {"question": q, "imageId": str(n), **({} if a is None else {"answer": a})}
        for n, (q, a) in enumerate(zip(questions, answers, strict=True))
    }
    path.write_text(json.dumps(records))
    return read_questions(path)


def test_it_learns_what_the_words_tell() -> None:
    answerer = QuestionOnly.fit(QUESTIONS, ANSWERS, FEW)
    assert answerer.predict(QUESTIONS) == ANSWERS
    # Unlike the most frequent answer to a form, which here is one: "What is the".
    assert answerer.predict(["What is the c on the table now?", "?"])[0] == "glass"
    assert answerer.predict([]) == []


def test_the_same_questions_give_the_same_answerer_wherever_it_is_trained() -> None:
    first = QuestionOnly.fit(QUESTIONS, ANSWERS, FEW)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.manual_seed(9)
        before = torch.random.get_rng_state()
        with torch.no_grad():  # as in evaluations
            again = QuestionOnly.fit(QUESTIONS, ANSWERS, FEW)
        assert torch.get_num_threads() == 3
        assert torch.equal(torch.random.get_rng_state(), before), "a run's own draws are unchanged"
    finally:
        torch.set_num_threads(threads)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_it_is_trained_once_for_the_same_questions_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = table_of(tmp_path / "train.json", [*QUESTIONS, "Why?"], [*ANSWERS, None])
    trained: list[int] = []
    fit = QuestionOnly.fit

    def counted(questions: Sequence[str], answers: Sequence[str], by: Settings) -> QuestionOnly:
        trained.append(len(questions))
        return fit(questions, answers, by)

    monkeypatch.setattr(QuestionOnly, "fit", counted)
    first = question_only([table], FEW)
    assert question_only([table], FEW).predict(QUESTIONS) == first.predict(QUESTIONS) == ANSWERS
    assert trained == [6], "questions without an answer aren't trained on"
    other = table_of(tmp_path / "other.json", QUESTIONS, ANSWERS[::-1])
    assert question_only([other], FEW).predict(QUESTIONS) == ANSWERS[::-1]
    question_only([table, other], replace(FEW, questions=4))
    assert trained == [6, 6, 4], "more questions than allowed are sampled"
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-9])
    question_only([table], FEW)
    assert trained == [6, 6, 4, 6], "a damaged file is trained anew"


def test_a_score_is_compared_question_by_question() -> None:
    """An unpaired interval of these two shares would hold 0."""
    blind = (np.random.default_rng(0).random(400) < 0.4).astype(np.float64)
    own = blind.copy()
    own[np.flatnonzero(blind == 0)[:16]] = 1
    images = [str(n // 2) for n in range(400)]
    found = above_blind(own, blind, images, resamples=200, seed=0)
    assert found["baseline_blind"] == pytest.approx(blind.mean())
    assert found["above_blind"] == pytest.approx(4)
    assert 0 < found["above_blind_low"] < 4 < found["above_blind_high"] < 9
    assert "4.0 points above a question-only answerer, 95 % interval +" in beside_blind(found)
    assert above_blind(own, blind, images, resamples=0, seed=0).keys() == {
        "baseline_blind",
        "above_blind",
    }


@pytest.mark.parametrize(
    ("difference", "above"),
    [
        ({"above_blind": -1.0, "above_blind_low": -3.0, "above_blind_high": 1.0}, False),
        ({"above_blind": 1.0, "above_blind_low": -0.5, "above_blind_high": 2.5}, False),
        ({"above_blind": 1.0, "above_blind_low": 0.5, "above_blind_high": 1.5}, True),
        ({"above_blind": 0.0}, False),
        ({"above_blind": 0.1}, True),
    ],
)
def test_a_score_that_proves_no_sight_is_said_to(difference: dict[str, float], above: bool) -> None:
    said = beside_blind({"baseline_blind": 0.5, **difference})
    assert ("Not above a question-only answerer, which sees no image: 50.0 %" in said) != above
    assert ("points above a question-only answerer" in said) == above


def test_a_run_ends_with_the_comparison(
    configured: Callable[..., Config], tiny_options: list[str], mini_gqa: Path, tmp_path: Path
) -> None:
    fast = ["run.max_steps=1", "task.resamples=100", "task.report_examples=4"]
    whole = ["run.small_val_size=9999", "run.small_test_size=9999"]
    cfg = configured(*tiny_options, *TINY_MODEL, *fast, *whole)
    with started(cfg, ["train", "val", "testdev"]) as runner:
        metrics = runner.train()
    folder = runner.output_dir
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    first, last = (entry for entry in log if entry["kind"] == "val")
    assert "baseline_blind" not in first, "validations are for selecting"
    for split, found in metrics.items():
        assert found["above_blind"] == pytest.approx(
            100 * (found["answer_accuracy"] - found["baseline_blind"])
        )
        by_image = ByImage.read(folder / f"{split}_by_image.json")
        assert by_image is not None
        assert by_image.blind is not None
        assert by_image.blind.mean("answer_accuracy") == pytest.approx(found["baseline_blind"])
    assert metrics["testdev"]["baseline_blind"] > metrics["testdev"]["baseline_overall"]
    said = (folder / "log.txt").read_text()
    assert "Not above a question-only answerer" in said, "one step teaches nothing"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Not above a question-only answerer" in page
    assert '"blind":"question only"' in page.replace(": ", ":")
    assert last["baseline_blind"] == metrics["val"]["baseline_blind"]


def test_without_training_questions_it_has_a_reason_and_an_option_turns_it_off(
    configured: Callable[..., Config], tiny_options: list[str], mini_gqa: Path, tmp_path: Path
) -> None:
    root = tmp_path / "gqa"
    (root / "questions").mkdir(parents=True)
    (root / "images").symlink_to(mini_gqa / "images")
    own = mini_gqa / "questions" / "val_balanced_questions.json"
    (root / "questions" / own.name).symlink_to(own)
    options = [*tiny_options, *TINY_MODEL, "run.test_splits=[]", "run.report=false"]
    off = "task.blind_baseline=false"
    with started(configured(*options, "run.max_steps=1", off), ["train", "val"]) as runner:
        assert "baseline_blind" not in runner.train()["val"]
    assert "not computed on val: baseline_blind" not in (runner.output_dir / "log.txt").read_text()
    weights = runner.output_dir / "fusion_encoder_best.safetensors"
    here = [f"datasets.gqa_fusion.root={root}", f"model.fusion_weights={weights}"]
    with started(configured(*options, *here), ["val"]) as runner:
        assert "baseline_blind" not in runner.evaluate()["val"]
    lacks = "not computed on val: baseline_blind: a question-only answerer needs the training"
    assert lacks in (runner.output_dir / "log.txt").read_text()
