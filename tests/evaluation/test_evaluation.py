"""Scores and baselines, and their files and tables."""

import json
from pathlib import Path

import pytest

from lavis_ext.common.metrics import by_name
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.gqa.scoring_files import ScoringFiles
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.gqa.baselines import baseline_answers
from lavis_ext.evaluation.gqa.metrics import IN_RUNS, SCORED, headline, metrics_of
from lavis_ext.evaluation.gqa.predictions import write_predictions
from lavis_ext.evaluation.gqa.scorer import GqaScorer
from lavis_ext.evaluation.gqa.scores import score
from lavis_ext.evaluation.table import metrics_table


@pytest.fixture
def table(tmp_path: Path) -> QuestionTable:
    def record(question: str, answer: str | None, structural: str) -> dict[str, object]:
        types = {"structural": structural, "semantic": "obj", "detailed": "d"}
        content = {"question": question, "imageId": "1", "types": types}
        return content if answer is None else {**content, "answer": answer}

    path = tmp_path / "questions.json"
    path.write_text(
        json.dumps(
            {
                "01": record("What color is it?", "red", "query"),
                "02": record("What color is that?", "blue", "query"),
                "03": record("Is there a cat?", "yes", "verify"),
                "04": record("Is there a dog?", "no", "verify"),
                "05": record("Is there an owl?", None, "verify"),
            }
        )
    )
    return read_questions(path)


NOWHERE = ScoringFiles(Path("no/choices.json"), Path("no/sceneGraphs.json"))


def metrics(table: QuestionTable, predictions: dict[str, str]) -> dict[str, float]:
    return metrics_of(score(GqaScorer(table, NOWHERE).outcomes(predictions), resamples=0))


def test_accuracy_overall_and_by_type(table: QuestionTable) -> None:
    assert metrics(table, {"01": "red", "02": "red", "03": "yes", "04": "no", "05": "no"}) == {
        "answer_accuracy": 0.75,
        "answer_accuracy_binary": 1.0,
        "answer_accuracy_open": 0.5,
        "answer_accuracy_query": 0.5,
        "answer_accuracy_verify": 1.0,
    }


def test_baselines_come_from_the_training_answers(table: QuestionTable) -> None:
    forms = dict(
        zip(table.columns["question_id"].to_pylist(), table.forms().to_pylist(), strict=True)
    )
    vocabulary = AnswerVocabulary(
        ("yes", "blue"), overall="yes", by_form={forms["01"]: "blue", forms["03"]: "no"}
    )
    right = {
        name: metrics(table, answers)["answer_accuracy"]
        for name, answers in baseline_answers(table, vocabulary).items()
    }
    assert right == {"overall": 0.25, "form": 0.5}


def test_a_split_without_answers_is_not_scored(table: QuestionTable) -> None:
    assert GqaScorer(table.take([4]), NOWHERE).questions == []


def test_a_missing_file_is_a_reason_and_no_error(table: QuestionTable) -> None:
    outcomes = GqaScorer(table, NOWHERE).outcomes(
        {"01": "red", "02": "red", "03": "yes", "04": "no"}, grounding={}
    )
    assert "no/choices.json" in outcomes.not_computed["validity"]
    assert outcomes.not_computed["grounding"] == (
        "the questions have no annotations of the objects that they name"
    )
    assert "list no entailed ones" in outcomes.not_computed["consistency"]


def test_every_metric_that_scores_give_is_declared_with_its_direction(table: QuestionTable) -> None:
    declared = by_name(SCORED)
    found = metrics(table, {"01": "red", "02": "red", "03": "yes", "04": "no"})
    assert found.keys() <= declared.keys()
    assert {*IN_RUNS.values()} <= declared.keys()
    assert [name for name, each in declared.items() if each.better == "min"] == ["distribution"]
    assert [name for name, each in declared.items() if each.unit != "share"] == ["distribution"]


def test_predictions_are_in_the_leaderboards_format(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.json", {"02930152": "red"})
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {"questionId": "02930152", "prediction": "red"}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_the_table_has_a_row_a_metric_and_percentages() -> None:
    text = metrics_table(
        {"val": {"answer_accuracy": 0.5}, "testdev": {"loss": 1.25, "count": 3.0}}, by_name(SCORED)
    )
    assert [line.split() for line in str(text).splitlines()] == [
        ["metric", "val", "testdev"],
        ["answer_accuracy", "50.0", "%", "-"],
        ["loss", "-", "1.2500"],
        ["count", "-", "3"],
    ]


def test_the_headline_compares_accuracy_with_the_better_baseline() -> None:
    found = {"answer_accuracy": 0.5, "baseline_form": 0.35, "baseline_overall": 0.2}
    assert headline("testdev", found) == (
        "testdev: 50.0 % answered right, 15.0 points above the most frequent answer to the form of "
        "question"
    )
    assert "5.0 points below" in headline("val", {**found, "baseline_form": 0.55})
    assert headline("test", {"loss": 1.0}) == ""
