"""VQA accuracy against the challenge's script."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lavis_ext.datasets.vqa.dataset import Benchmark
from lavis_ext.evaluation.bootstrap import mean_scores
from lavis_ext.evaluation.vqa.accuracy import (
    direct_answer_accuracy,
    one_answer_accuracy,
    processed,
    vqa_accuracy,
)
from lavis_ext.evaluation.vqa.predictions import result_of
from lavis_ext.evaluation.vqa.scoring import VqaQuestion, score
from lavis_ext.registry import vqa_eval_class

BASES = ("red", "two", "yes", "fire truck", "dont know", "st. louis", "1,000", "10:30", "none")
FORMS = (
    "{}",
    "a {}",
    "the {}",
    "An {}",
    "{}.",
    "{}!",
    "{}, {}",
    "{} ,",
    "({})",
    "{}/{}",
    "{}-{}",
    "'{}'",
    "{}'s",
    "{}s",
    " {} ",
    "{}\n",
    "{}\tthe",
    "{} 3.5",
    "$ {}",
    "{};{}",
    "isnt {}",
    "{}?",
    "THE {}",
    "one {}",
    "arent the {}",
    "whats {}",
    "{} youre",
    "",
    ".",
    "the",
)
COUNT = 500


def drawn(random: random.Random) -> str:
    base = random.choice(BASES)
    return random.choice(FORMS).replace("{}", base)


def cases() -> list[tuple[str, list[str]]]:
    """Predictions and ten answers, from all people of one mind to nobody agreeing."""
    draws = random.Random(7)
    found = []
    for _ in range(COUNT):
        said = [drawn(draws) for _ in range(draws.choice([1, 2, 3, 10]))]
        answers = [draws.choice(said) for _ in range(10)]
        given = draws.choice([*answers, drawn(draws), processed(draws.choice(answers))])
        found.append((given, answers))
    return found


def official(prediction: str, answers: list[str]) -> float:
    """The script's accuracy in percent (vqaEval.py of 2021), its own way of counting."""
    script = vqa_eval_class()()

    def line(text: str) -> str:
        return str(text.replace("\n", " ").replace("\t", " ").strip())

    people = [{"answer": line(answer), "answer_id": n} for n, answer in enumerate(answers)]
    given = line(prediction)
    if len({person["answer"] for person in people}) > 1:
        for person in people:
            person["answer"] = script.processPunctuation(person["answer"])
            person["answer"] = script.processDigitArticle(person["answer"])
        given = script.processDigitArticle(script.processPunctuation(given))
    found = []
    for person in people:
        others = [each for each in people if each != person]
        matching = [each for each in others if each["answer"] == given]
        found.append(min(1, float(len(matching)) / 3))
    return 100 * float(sum(found)) / len(found)


def by_the_script(given: list[tuple[str, list[str]]]) -> Any:
    values = [official(prediction, answers) for prediction, answers in given]
    by_type: dict[str, dict[str, list[float]]] = {"perQuestionType": {}, "perAnswerType": {}}
    for place, value in enumerate(values):
        kind = "what" if place % 3 else "is it"
        by_type["perQuestionType"].setdefault(kind, []).append(value)
        kind = ("yes/no", "number", "other")[place % 3]
        by_type["perAnswerType"].setdefault(kind, []).append(value)
    means = {
        name: {kind: sum(each) / len(each) for kind, each in kinds.items()}
        for name, kinds in by_type.items()
    }
    overall = round(sum(value / 100 for value in values) / len(values), 15)
    evaluated = {place: round(value, 12) for place, value in enumerate(values)}
    return SimpleNamespace(
        evalQA=evaluated, accuracy={"overall": round(100 * overall, 12), **means}
    )


def test_accuracy_is_that_of_the_official_script_to_the_last_digit() -> None:
    given = cases()
    script = by_the_script(given)
    own = [vqa_accuracy(prediction, answers) for prediction, answers in given]
    assert [round(100 * each, 12) for each in own] == list(script.evalQA.values())
    assert round(100 * float(sum(own)) / len(own), 12) == script.accuracy["overall"]
    assert {round(each, 9) for each in own} == {0, 0.3, 0.6, 0.9, 1}, "all kinds occur"
    naive = [min(1.0, answers.count(prediction) / 3) for prediction, answers in given]
    assert sum(a != b for a, b in zip(naive, own, strict=True)) > COUNT / 5, "odd cases matter"


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("two", ["two"] * 10, 1),
        ("2", ["two"] * 10, 0),  # all agree: nothing is processed
        ("yes", ["Yes"] * 9 + ["no"], 1),
        ("Yes", ["yes"] * 10, 0),
        ("the dog", ["dog"] * 3 + ["cat"] * 7, 0.9),
    ],
)
def test_answers_are_normalized_only_if_people_disagree(
    prediction: str, answers: list[str], expected: float
) -> None:
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected)


def test_metrics_by_type_are_those_of_the_official_script() -> None:
    given = cases()
    script = by_the_script(given)
    questions = [
        VqaQuestion(
            id=str(place),
            image_id=str(place // 4),
            text="?",
            answers=tuple(answers),
            answer=answers[0],
            answer_type=("yes/no", "number", "other")[place % 3],
            question_type="what" if place % 3 else "is it",
        )
        for place, (_, answers) in enumerate(given)
    ]
    predictions = {str(place): answer for place, (answer, _) in enumerate(given)}
    scores = score(questions, predictions, Benchmark.VQA, resamples=200)
    assert scores.questions == COUNT
    assert scores.images == COUNT / 4
    for ours, theirs in (
        ({"overall": scores.accuracy}, {"overall": script.accuracy["overall"]}),
        (scores.breakdowns["question_type"], script.accuracy["perQuestionType"]),
        (scores.breakdowns["answer_type"], script.accuracy["perAnswerType"]),
    ):
        assert ours.keys() == theirs.keys()
        for name, each in ours.items():
            assert 100 * each.value == pytest.approx(theirs[name], abs=1e-11)
            assert each.low is not None
            assert each.high is not None
            assert each.low < each.value < each.high
    assert set(scores.metrics()) == {
        "vqa_accuracy",
        "vqa_accuracy_yes_no",
        "vqa_accuracy_number",
        "vqa_accuracy_other",
    }


def test_one_persons_answer_is_right_or_wrong() -> None:
    assert one_answer_accuracy("The red.", ["red"]) == 1
    assert one_answer_accuracy("blue", ["red"]) == 0
    assert vqa_accuracy("red", ["red"]) == 0, "nobody else could agree"
    assert one_answer_accuracy("red", ["red"] * 4) == 1


def test_aokvqa_compares_answers_without_normalization() -> None:
    assert direct_answer_accuracy("red", ["red", "red", "blue"]) == pytest.approx(2 / 3)
    assert direct_answer_accuracy("Red", ["red"] * 10) == 0
    assert direct_answer_accuracy("red", ["red"] * 10) == 1


def test_results_are_in_the_servers_formats() -> None:
    predictions = {"9000": "red", "007": "yes", "22Mex": "two"}
    assert result_of(Benchmark.VQA, predictions) == [
        {"question_id": 9000, "answer": "red"},
        {"question_id": "007", "answer": "yes"},
        {"question_id": "22Mex", "answer": "two"},
    ]
    assert result_of(Benchmark.AOKVQA, {"22Mex": "two"}) == {"22Mex": {"direct_answer": "two"}}
    assert result_of(Benchmark.VIZWIZ, {"VizWiz_val_0.jpg": "two"}) == [
        {"image": "VizWiz_val_0.jpg", "answer": "two"}
    ]


def test_a_share_of_1_has_wilsons_interval() -> None:
    scores = mean_scores({"a": np.ones(8)}, [str(i) for i in range(8)], 100, seed=0)
    assert (scores["a"].low, scores["a"].high) == pytest.approx((0.6756, 1), abs=1e-4)


def test_intervals_are_over_images() -> None:
    """Questions of one image are right together: more of them tell no more."""
    right = np.repeat(np.random.default_rng(0).integers(0, 2, 50), 20).astype(float)
    images = [str(place // 20) for place in range(1000)]
    by_image = mean_scores({"accuracy": right}, images, 400, 0)["accuracy"]
    alone = mean_scores({"accuracy": right}, [str(n) for n in range(1000)], 400, 0)["accuracy"]
    assert by_image.high - by_image.low > 3 * (alone.high - alone.low)
    assert mean_scores({"none": np.full(3, np.nan)}, ["a", "b", "c"], 200, 0) == {}
