"""Mismatched questions never match, and depend only on seed, epoch and question."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.questions import find_questions, read_questions
from lavis_ext.datasets.questions.mismatched import MismatchedQuestions
from lavis_ext.datasets.questions.table import SCHEMA, QuestionTable
from lavis_ext.datasets.samplers import TrainBatches


def table_of(questions: Sequence[tuple[str, str]]) -> QuestionTable:
    """A table of (image, question)."""
    records = [
        {"question_id": f"0{place}", "image_id": image, "question": question}
        for place, (image, question) in enumerate(questions)
    ]
    return QuestionTable(pa.Table.from_pylist(records, schema=SCHEMA))


@pytest.fixture(scope="module")
def table(mini_gqa: Path) -> QuestionTable:
    return read_questions(find_questions(mini_gqa, "train", "balanced"))


ADVERSARIAL = [
    *[("1", text) for text in ("Is it red?", "is it  RED?", "Is it blue?", "What is it?")],
    *[("2", text) for text in ("Is it red?", "Is it blue?", "Where is it?")],
    *[(str(image), "Is it red?") for image in range(3, 60)],
    *[(str(image), "Is  it Blue? ") for image in range(3, 60)],
    ("60", "Is it red?"),
]
"""Almost every question has one of two texts; images 1 and 2 have one possibility each."""


def same(text: str | None) -> str:
    return " ".join((text or "").lower().split())


def assert_none_matches(table: QuestionTable, drawn: dict[int, list[int]]) -> None:
    texts = [same(text) for text in table.columns["question"].to_pylist()]
    images = table.columns["image_id"].to_pylist()
    of_image: dict[str, set[str]] = {}
    for image, text in zip(images, texts, strict=True):
        of_image.setdefault(image, set()).add(text)
    for row, others in drawn.items():
        for other in others:
            assert other != row
            assert images[other] != images[row]
            assert texts[other] not in of_image[images[row]]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_no_mismatched_question_matches(table: QuestionTable, hard: bool, count: int) -> None:
    for questions in (table, table_of(ADVERSARIAL)):
        mismatched = MismatchedQuestions(questions, count=count, hard=hard, seed=1)
        for epoch in range(3):
            drawn = {row: mismatched.draw(row, epoch) for row in range(min(len(questions), 300))}
            assert {len(rows) for rows in drawn.values()} == {count}
            assert_none_matches(questions, drawn)


def test_the_only_possible_mismatch_is_found() -> None:
    questions = table_of([*[(str(image), "Is it red?") for image in range(500)], ("x", "Why?")])
    mismatched = MismatchedQuestions(questions, count=2, hard=True, seed=0)
    assert mismatched.draw(7, epoch=0) == [500, 500]


def test_several_mismatches_of_a_question_differ(table: QuestionTable) -> None:
    for hard in (False, True):
        mismatched = MismatchedQuestions(table, count=4, hard=hard, seed=1)
        codes = table.question_codes()
        for row in range(0, len(table), 7):
            assert len({*codes[mismatched.draw(row, 0)]}) == 4


def test_hard_mismatches_have_the_same_form_if_the_split_has_one(table: QuestionTable) -> None:
    forms, texts, images = table.form_codes(), table.question_codes(), table.codes("image_id")
    mismatched = MismatchedQuestions(table, count=1, hard=True, seed=1)
    plain = MismatchedQuestions(table, count=1, hard=False, seed=1)
    possible, plain_same = 0, 0
    for row in range(0, len(table), 3):
        own = np.isin(texts, texts[images == images[row]])
        fitting = (forms == forms[row]) & (images != images[row]) & ~own
        same_form = forms[mismatched.draw(row, 0)[0]] == forms[row]
        assert same_form == fitting.any()
        possible += fitting.any()
        plain_same += forms[plain.draw(row, 0)[0]] == forms[row]
    assert possible > 50
    assert plain_same < possible / 2


def test_draws_differ_by_epoch_and_by_seed_and_repeat(table: QuestionTable) -> None:
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        mismatched = MismatchedQuestions(table, count=1, hard=False, seed=seed)
        return [mismatched.draw(row, epoch) for row in range(100)]

    assert drawn(1, 0) == drawn(1, 0)
    for other in (drawn(1, 1), drawn(2, 0)):
        assert sum(a == b for a, b in zip(drawn(1, 0), other, strict=True)) < 10


def test_draws_depend_on_neither_batches_nor_processes_nor_order(table: QuestionTable) -> None:
    codes = table.codes("image_id")

    def drawn(batch_size: int, world_size: int, examples_per_image: int) -> dict[int, list[int]]:
        found = {}
        for rank in range(world_size):
            mismatched = MismatchedQuestions(table, count=2, hard=True, seed=1)
            for batch in TrainBatches(
                codes,
                batch_size=batch_size,
                examples_per_image=examples_per_image,
                seed=1,
                rank=rank,
                world_size=world_size,
            ):
                found |= {int(row): mismatched.draw(int(row), batch.epoch) for row in batch.rows}
        return found

    expected = drawn(64, 1, 1)
    assert len(expected) == len(table)
    assert drawn(5, 1, 8) == drawn(16, 3, 4) == expected


def test_draws_cover_the_split(table: QuestionTable) -> None:
    mismatched = MismatchedQuestions(table, count=1, hard=False, seed=1)
    counts = Counter(mismatched.draw(row, 0)[0] for row in range(len(table)))
    assert len(counts) > len(table) / 2
    assert max(counts.values()) < 12


@pytest.mark.parametrize(
    "questions",
    [
        [("1", "Is it red?")],
        [("1", "Is it red?"), ("1", "Why?")],
        [("1", "Is it red?"), ("2", "is it  red?"), ("3", "Is it red? ")],
        [("7", "Is it red?"), ("7", "Why?"), ("8", "why?")],
    ],
    ids=["one question", "one image", "one text", "one image is asked everything"],
)
def test_a_split_without_any_is_rejected_before_training(questions: list[tuple[str, str]]) -> None:
    with pytest.raises(UserError, match=r"Image [17] has no mismatched question: .*run\.small_"):
        MismatchedQuestions(table_of(questions), count=1, hard=False, seed=0)
