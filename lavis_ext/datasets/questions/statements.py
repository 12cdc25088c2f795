"""Statements that answer questions, for matching: "the ring is red" instead of "what color is it?".

A question without content ("is there a circle?") fits every image, so telling matched from
mismatched questions teaches little. A statement is true of its image, and false of others.
"""

import json
import re

import numpy as np
import numpy.typing as npt

from lavis_ext.datasets.questions.mismatched import Groups, MismatchedQuestions
from lavis_ext.datasets.questions.table import QuestionTable

FULL_ANSWER = r'"fullAnswer"\s*:\s*(?P<text>"(?:[^"\\]|\\.)*")'
"""Pattern of GQA's key in a record's JSON text; the annotations' key of that name has an object."""
SPOKEN = re.compile(r"^(?:yes|no)\s*,\s*", re.IGNORECASE)
"""How answers begin. Captions, which BLIP was trained to match, don't; nor do they end in a dot."""


class Statements:
    """The statement of each question of a table.

    It is GQA's ``fullAnswer`` without "Yes," or "No," in front and the dot at the end. Records
    without one have question and answer together; a question without an answer is its own
    statement.
    """

    def __init__(self, table: QuestionTable) -> None:
        self._table = table
        self._full = table.extracted(FULL_ANSWER)

    def of(self, rows: npt.ArrayLike) -> list[str]:
        """Statements of these rows, in this order."""
        places = np.asarray(rows, np.int64)
        questions, answers = self._table.texts(places, "question", "answer")
        full = [None] * len(places) if self._full is None else self._full.take(places).to_pylist()
        return [_statement(*each) for each in zip(questions, answers, full, strict=True)]


class MismatchedStatements(MismatchedQuestions):
    """Draws questions whose statements are false of an image.

    First come those of the same question about other images with another answer, each answer once:
    they differ from the true statement in what the image has to tell. Where there are too few of
    them, the others are of other questions (see ``MismatchedQuestions``), which may happen to be
    true.
    """

    def __init__(self, table: QuestionTable, *, count: int, hard: bool, seed: int) -> None:
        super().__init__(table, count=count, hard=hard, seed=seed)
        self.statements = Statements(table)
        self._answer = table.codes("answer")
        self._rows_by_text = Groups(self._text)

    def draw(self, row: int, epoch: int) -> list[int]:
        """Draw ``count`` rows whose statements are false of the image of ``row``."""
        random = self._generator(row, epoch)
        same = self._rows_by_text.of(self._text[row])
        other = (self._image[same] != self._image[row]) & (self._answer[same] >= 0)
        fitting = random.permutation(same[other & (self._answer[same] != self._answer[row])])
        if self._answer[row] < 0:
            fitting = fitting[:0]
        _, first = np.unique(self._answer[fitting], return_index=True)
        drawn = fitting[np.sort(first)][: self.count].tolist()
        others = super().draw(row, epoch) if len(drawn) < self.count else []
        return drawn + others[: self.count - len(drawn)]


def _statement(question: str, answer: str | None, full: str | None) -> str:
    text = json.loads(full) if full else ""
    stated = SPOKEN.sub("", text).strip().removesuffix(".")
    # Some data sets repeat the bare answer there.
    if stated and len(stated.split()) > len((answer or "").split()):
        return stated
    return question if answer is None else f"{question} {answer}"
