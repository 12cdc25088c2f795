"""Statements that answer questions: "the ring is red" for "what color is it?".

A question without content ("is there a circle?") fits every image, so telling matched from
mismatched questions teaches little. A statement is true of its image, and false of others.
"""

import re

import numpy as np
import numpy.typing as npt

from lavis_ext.common.files import parse_json
from lavis_ext.datasets.questions.mismatched import Groups, MismatchedQuestions
from lavis_ext.datasets.questions.table import QuestionTable

FULL_ANSWER = r'"fullAnswer"\s*:\s*(?P<text>"(?:[^"\\]|\\.)*")'
"""Pattern of GQA's key in a record's JSON text; the annotations' key of that name has an object."""
SPOKEN = re.compile(r"^(?:yes|no)\s*,\s*", re.IGNORECASE)
"""How answers begin. Captions, which BLIP was trained to match, don't; nor do they end in a dot."""


class Statements:
    """The statement of each question of a table.

    It is GQA's ``fullAnswer``. Records without one have question and answer together.
    """

    def __init__(self, table: QuestionTable) -> None:
        self._table = table
        self._full = table.extracted(FULL_ANSWER)

    def sentences(self, rows: npt.ArrayLike) -> list[str | None]:
        """Statements of these rows without "Yes," in front, which describes nothing.

        None without an answer.
        """
        return [
            SPOKEN.sub("", full) or (None if answer is None else f"{question} {answer}")
            for question, answer, full in self._read(rows)
        ]

    def to_match(self, rows: npt.ArrayLike) -> list[str]:
        """Statements of these rows as captions are, without "Yes," in front and the dot at the end.

        A question without an answer is its own statement.
        """
        return [
            SPOKEN.sub("", full).strip().removesuffix(".")
            or (question if answer is None else f"{question} {answer}")
            for question, answer, full in self._read(rows)
        ]

    def _read(self, rows: npt.ArrayLike) -> list[tuple[str, str | None, str]]:
        """Question, answer and full answer of each row; the last is empty if it says no more."""
        places = np.asarray(rows, np.int64)
        questions, answers = self._table.texts(places, "question", "answer")
        found = [None] * len(places) if self._full is None else self._full.take(places).to_pylist()
        full = [parse_json(text).strip() if text else "" for text in found]
        return [
            # Some data sets repeat the bare answer there.
            (question, answer, text if _words(SPOKEN.sub("", text)) > _words(answer) else "")
            for question, answer, text in zip(questions, answers, full, strict=True)
        ]


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


def _words(text: str | None) -> int:
    return len((text or "").split())
