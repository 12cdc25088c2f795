"""Mismatched questions: for each question, others that don't belong to its image.

A question that matches teaches nothing without one that doesn't (DESIGN: only matched pairs bring
the loss to 0 in a few steps). Draws are seeded by run seed, question id and epoch, so neither the
batch size nor the number of processes changes them.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from lavis_ext.datasets.questions import QuestionTable
from lavis_ext.errors import UserError

QUICK_DRAWS = 32


class MismatchedQuestions:
    """Draws mismatched questions from the whole split.

    Args:
        table: the questions of the split.
        count: how many to draw for each question.
        hard: prefer questions of the same form (see ``QuestionTable.forms``) about other images.
        seed: the run's seed.
    """

    def __init__(self, table: QuestionTable, *, count: int, hard: bool, seed: int) -> None:
        self.count = count
        self._table = table
        self._seed = seed
        self._text = table.question_codes()
        self._image = table.codes("image_id")
        self._rows_by_image = _Groups(self._image)
        self._form = table.form_codes() if hard else None
        self._rows_by_form = _Groups(self._form) if self._form is not None else None

    def draw(self, row: int, epoch: int) -> list[int]:
        """``count`` rows whose questions don't belong to the image of ``row``.

        None of them is ``row`` itself, has the text of a question asked about the same image, or
        belongs to that image; their texts differ from each other while the split has enough.
        Raises UserError where the split holds no such question at all.
        """
        random = self._generator(row, epoch)
        own_texts = self._text[self._rows_by_image.of(self._image[row])]
        drawn: list[int] = []
        for _ in range(self.count):
            drawn.append(self._draw_one(row, own_texts, drawn, random))
        return drawn

    def _generator(self, row: int, epoch: int) -> np.random.Generator:
        name = f"{self._seed}/{self._table.text('question_id', row)}/{epoch}"
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))

    def _draw_one(
        self,
        row: int,
        own_texts: npt.NDArray[np.int64],
        drawn: list[int],
        random: np.random.Generator,
    ) -> int:
        taken = np.concatenate([own_texts, self._text[drawn]]) if drawn else own_texts
        if self._form is not None and self._rows_by_form is not None:
            same_form = self._rows_by_form.of(self._form[row])
            for place in random.integers(len(same_form), size=QUICK_DRAWS):
                if self._fits(candidate := int(same_form[place]), row, taken):
                    return candidate
        for candidate in random.integers(len(self._text), size=QUICK_DRAWS):
            if self._fits(int(candidate), row, taken):
                return int(candidate)
        # Rare: a split so small or so uniform that most of its questions don't qualify.
        for avoid in (taken, own_texts):
            fitting = np.flatnonzero(
                (self._image != self._image[row]) & ~np.isin(self._text, avoid)
            )
            if len(fitting):
                return int(random.choice(fitting))
        raise UserError(
            f"Question {self._table.text('question_id', row)} has no mismatched question: every "
            "question of the split is also asked about its image. Train on more questions or "
            "images (run.small_train_size), or with the objective `answer` alone."
        )

    def _fits(self, candidate: int, row: int, taken: npt.NDArray[np.int64]) -> bool:
        other_image = self._image[candidate] != self._image[row]
        return bool(other_image and not (taken == self._text[candidate]).any())


class _Groups:
    """Rows by code, without a Python list for each code."""

    def __init__(self, codes: npt.NDArray[np.int64]) -> None:
        self._order = np.argsort(codes, kind="stable")
        self._starts = np.searchsorted(codes[self._order], np.arange(codes.max(initial=-1) + 2))

    def of(self, code: int) -> npt.NDArray[np.int64]:
        return self._order[self._starts[code] : self._starts[code + 1]]
