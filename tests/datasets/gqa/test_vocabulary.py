"""The answer vocabulary and its baselines."""

import json

import pyarrow as pa
import pytest

from lavis_ext.datasets.questions.table import SCHEMA, QuestionTable
from lavis_ext.datasets.questions.vocabulary import OUTSIDE, AnswerVocabulary

ANSWERS = [
    ("Is it red?", "yes"),
    ("Is it red?", "no"),
    ("Is it red?", "yes"),
    ("What color is it?", "blue"),
    ("What color is it?", "red"),
    ("What color is it?", "no"),
    ("What color is it?", "blue"),
    ("Who is it?", None),
    ("Who is it?", None),
    ("Who is it?", None),
]


@pytest.fixture
def table() -> QuestionTable:
    records = [
        {"question_id": str(place), "image_id": "1", "question": question, "answer": answer}
        for place, (question, answer) in enumerate(ANSWERS)
    ]
    return QuestionTable(pa.Table.from_pylist(records, schema=SCHEMA))


def test_answers_are_ranked_by_frequency_then_alphabet(table: QuestionTable) -> None:
    assert AnswerVocabulary.from_table(table, 100).answers == ("blue", "no", "yes", "red")
    two = AnswerVocabulary.from_table(table, 2)
    assert two.answers == ("blue", "no")
    assert len(two) == 2


def test_answers_outside_have_no_class(table: QuestionTable) -> None:
    vocabulary = AnswerVocabulary.from_table(table, 3)
    targets = vocabulary.targets(["yes", "blue", "red", "Yes", "", None])
    assert targets.tolist() == [2, 0, OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE]


def test_baselines_are_the_most_frequent_answers_of_a_form_and_of_all(table: QuestionTable) -> None:
    vocabulary = AnswerVocabulary.from_table(table, 3)
    red, color, nobody = (table.forms().to_pylist()[row] for row in (0, 3, 7))
    assert vocabulary.overall == "blue"
    assert vocabulary.guess(red) == "yes"
    assert vocabulary.guess(color) == "blue"
    assert vocabulary.guess(nobody) == vocabulary.guess("a form never seen") == "blue"


def test_it_survives_a_round_trip_through_json(table: QuestionTable) -> None:
    vocabulary = AnswerVocabulary.from_table(table, 3)
    again = AnswerVocabulary(**json.loads(json.dumps(vocabulary.as_dict())))
    assert again == vocabulary
    assert again.targets(["yes"]).tolist() == vocabulary.targets(["yes"]).tolist()


def test_a_split_without_answers_has_an_empty_vocabulary(table: QuestionTable) -> None:
    vocabulary = AnswerVocabulary.from_table(table.take([7, 8]), 3)
    assert len(vocabulary) == 0
    assert vocabulary.guess("any") == ""
