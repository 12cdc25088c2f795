"""Statements in place of questions: true ones, and ones that are false of the image."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lavis_ext.datasets.gqa.questions import find_questions, read_questions
from lavis_ext.datasets.questions.statements import MismatchedStatements, Statements
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.samplers import BatchRows
from tests.datasets.gqa.test_builder import builder

RECORDS = [
    ("1", "What color is it?", "red", "The ring is red."),
    ("1", "Is there a ring?", "yes", "Yes, there is a ring."),
    ("2", "What color is it?", "blue", 'The "big" ring is blue.'),
    ("2", "Is there a ring?", "yes", "yes"),
    ("3", "what color  is it?", "green", None),
    ("3", "Is there a ring?", "no", "No, there is no ring."),
    ("4", "What color is it?", "red", "The star is red."),
    ("5", "What is it?", None, None),
]


def table_of(
    path: Path, records: Sequence[tuple[str, str, str | None, str | None]]
) -> QuestionTable:
    content = {}
    for n, (image, question, answer, full) in enumerate(records):
        given = {"question": question, "imageId": image, "answer": answer, "fullAnswer": full}
        # The annotations' key of the same name isn't a statement.
        annotations = {"annotations": {"fullAnswer": {"0": "17"}}}
        content[f"{n:03d}"] = annotations | {k: v for k, v in given.items() if v is not None}
    path.write_text(json.dumps(content))
    return read_questions(path)


@pytest.fixture
def table(tmp_path: Path) -> QuestionTable:
    return table_of(tmp_path / "questions.json", RECORDS)


def test_a_statement_is_the_full_answer_or_question_and_answer_together(
    table: QuestionTable,
) -> None:
    expected = [
        "The ring is red",
        "there is a ring",
        'The "big" ring is blue',
        "Is there a ring? yes",
        "what color  is it? green",
        "there is no ring",
        "The star is red",
        "What is it?",
    ]
    assert Statements(table).to_match(range(8)) == expected
    assert Statements(table.take([5, 0])).to_match([1, 0]) == [expected[0], expected[5]]
    in_memory = QuestionTable(table.columns)
    assert Statements(in_memory).to_match([0]) == ["What color is it? red"]
    assert Statements(table).sentences([0, 5, 3, 7]) == [
        "The ring is red.",
        "there is no ring.",
        "Is there a ring? yes",
        None,
    ]


def test_the_same_question_with_another_answer_comes_first(table: QuestionTable) -> None:
    drawn = MismatchedStatements(table, count=2, hard=False, seed=0)
    answers = table.columns["answer"].to_pylist()
    for epoch in range(20):
        assert {answers[row] for row in drawn.draw(0, epoch)} == {"blue", "green"}
        same, other = drawn.draw(1, epoch)
        assert same == 5, "the only image without a ring"
        assert RECORDS[other][0] != "1"
    assert {tuple(drawn.draw(0, epoch)) for epoch in range(20)} > {(2, 4)}, "in any order"
    assert drawn.draw(0, 3) == drawn.draw(0, 3)


def test_a_question_without_an_answer_has_other_images_statements(table: QuestionTable) -> None:
    drawn = MismatchedStatements(table, count=1, hard=False, seed=0)
    assert all(RECORDS[drawn.draw(7, epoch)[0]][0] != "5" for epoch in range(20))


def test_batches_have_statements_to_match_and_questions_to_answer(mini_gqa: Path) -> None:
    table = read_questions(find_questions(mini_gqa, "train", "balanced"))
    rows = range(12)
    batches = {}
    for text in ("question", "statement"):
        built = builder(mini_gqa, mismatched={"text": text, "per_question": 2})
        dataset = built.build_datasets({"train": None})
        batches[text] = dataset["train"].__getitems__(BatchRows(np.arange(12), 0, 12))
    asked, stated = batches["question"], batches["statement"]
    assert asked["matched_input"] == asked["text_input"] == stated["text_input"]
    full = [table.structure(row)["fullAnswer"] for row in rows]
    assert all(
        s.rstrip(".") in f.lower() for s, f in zip(stated["matched_input"], full, strict=True)
    )
    assert len(stated["mismatched_input"]) == 2 * len(rows)
    for place, true in enumerate(stated["matched_input"]):
        assert true not in stated["mismatched_input"][2 * place : 2 * place + 2]
