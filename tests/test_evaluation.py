"""Scores, baselines, and the files and tables they go into."""

import json
from pathlib import Path

import pytest

from lavis_ext.datasets.question_table import QuestionTable
from lavis_ext.datasets.questions import read_questions
from lavis_ext.datasets.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.accuracy import answer_accuracy, baseline_accuracy
from lavis_ext.evaluation.predictions import write_predictions
from lavis_ext.evaluation.table import figures_table, headline


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


def test_accuracy_overall_and_by_type(table: QuestionTable) -> None:
    figures = answer_accuracy(table, {"01": "red", "02": "red", "03": "yes", "04": "no"})
    assert figures == {
        "answer_accuracy": 0.75,
        "answer_accuracy_query": 0.5,
        "answer_accuracy_verify": 1.0,
    }


def test_a_missing_prediction_is_wrong(table: QuestionTable) -> None:
    assert answer_accuracy(table, {"01": "red"})["answer_accuracy"] == 0.25


def test_baselines_come_from_the_training_answers(table: QuestionTable) -> None:
    forms = dict(
        zip(table.columns["question_id"].to_pylist(), table.forms().to_pylist(), strict=True)
    )
    vocabulary = AnswerVocabulary(
        ("yes", "blue"), overall="yes", by_form={forms["01"]: "blue", forms["03"]: "no"}
    )
    figures = baseline_accuracy(table, vocabulary)
    assert figures == {"baseline_overall": 0.25, "baseline_form": 0.5}


def test_a_split_without_answers_has_no_accuracy(table: QuestionTable) -> None:
    unanswered = table.take([4])
    vocabulary = AnswerVocabulary(("yes",), overall="yes", by_form={})
    assert answer_accuracy(unanswered, {"05": "yes"}) == {}
    assert baseline_accuracy(unanswered, vocabulary) == {}


def test_predictions_are_in_the_leaderboards_format(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.json", {"02930152": "red"})
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {"questionId": "02930152", "prediction": "red"}
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_the_table_has_a_row_a_figure_and_percentages() -> None:
    text = figures_table({"val": {"answer_accuracy": 0.5}, "testdev": {"loss": 1.25, "count": 3.0}})
    assert [line.split() for line in text.splitlines()] == [
        ["val", "testdev"],
        ["answer_accuracy", "50.0", "%", "-"],
        ["loss", "-", "1.2500"],
        ["count", "-", "3"],
    ]


def test_the_headline_holds_accuracy_against_the_better_baseline() -> None:
    figures = {"answer_accuracy": 0.5, "baseline_form": 0.35, "baseline_overall": 0.2}
    assert headline("testdev", figures) == (
        "testdev: 50.0 % answered right, 15.0 points above the most frequent answer to the form of "
        "question"
    )
    assert "5.0 points below" in headline("val", {**figures, "baseline_form": 0.55})
    assert headline("test", {"loss": 1.0}) == ""
