"""Mismatched questions: for each question, others about other images.

With matched pairs only, the loss falls to 0 in a few steps (docs/traps.md, 1). Draws are seeded by
run seed, question id and epoch, so they don't depend on batch size or number of processes.
"""

import hashlib

import numpy as np

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.questions.table import Codes, QuestionTable

QUICK_DRAWS = 32


class MismatchedQuestions:
    """Draws mismatched questions from the whole split.

    Args:
        table: questions of the split.
        count: mismatched questions per question.
        hard: draw questions of the same form (see ``QuestionTable.forms``) about other images, or
            of any form if the split has none.
        seed: seed of the run.

    Raises UserError for an image without a mismatched question in the split.
    """

    def __init__(self, table: QuestionTable, *, count: int, hard: bool, seed: int) -> None:
        self.count = count
        self._table = table
        self._seed = seed
        self._text = table.question_codes()
        self._image = table.codes("image_id")
        self._rows_by_image = Groups(self._image)
        self._check_each_has_mismatch()
        self._form = table.form_codes() if hard else None
        self._rows_by_form = Groups(self._form) if self._form is not None else None

    def draw(self, row: int, epoch: int) -> list[int]:
        """Draw ``count`` rows with questions about images other than that of ``row``.

        Their texts differ from all questions about that image and, if the split has enough, from
        each other.
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
        own_texts: Codes,
        drawn: list[int],
        random: np.random.Generator,
    ) -> int:
        taken = np.concatenate([own_texts, self._text[drawn]]) if drawn else own_texts
        if self._form is not None and self._rows_by_form is not None:
            same_form = self._rows_by_form.of(self._form[row])
            if (found := self._draw_from(same_form, row, taken, random)) is not None:
                return found
        for avoid in (taken, own_texts):
            if (found := self._draw_from(None, row, avoid, random)) is not None:
                return found
        raise AssertionError("the constructor found a mismatched question for every image")

    def _draw_from(
        self,
        rows: Codes | None,
        row: int,
        taken: Codes,
        random: np.random.Generator,
    ) -> int | None:
        """Draw a suitable row from ``rows``, or from all rows; None if there is none."""
        count = len(self._text) if rows is None else len(rows)
        for place in random.integers(count, size=QUICK_DRAWS):
            candidate = int(place if rows is None else rows[place])
            if self._fits(candidate, row, taken):
                return candidate
        # Rare: so few or so similar rows that most are unsuitable.
        if rows is None:
            rows = np.arange(count, dtype=np.int32)
        other_image = self._image[rows] != self._image[row]
        fitting = rows[other_image & ~np.isin(self._text[rows], taken)]
        return int(random.choice(fitting)) if len(fitting) else None

    def _check_each_has_mismatch(self) -> None:
        """Raise UserError for an image about which every text of the split is asked."""
        present = np.zeros(
            self._text.max(initial=-1) + 1, bool
        )  # np.unique would take far more memory
        present[self._text] = True
        texts = np.count_nonzero(present)
        questions = np.bincount(self._image)
        for image in np.flatnonzero(questions >= texts):
            rows = self._rows_by_image.of(int(image))
            if len(np.unique(self._text[rows])) == texts:
                raise UserError(
                    f"Image {self._table.text('image_id', rows[0])} has no mismatched question: "
                    f"every one of the split's {len(self._text)} questions is also asked about it. "
                    "Use more questions or images (run.small_*_size), or the objective `answer` "
                    "alone."
                )

    def _fits(self, candidate: int, row: int, taken: Codes) -> bool:
        other_image = self._image[candidate] != self._image[row]
        return bool(other_image and not (taken == self._text[candidate]).any())


class Groups:
    """Rows by code, without a Python list per code."""

    def __init__(self, codes: Codes) -> None:
        self._order = np.argsort(codes, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(codes[self._order], np.arange(codes.max(initial=-1) + 2))

    def of(self, code: int) -> Codes:
        """Rows with this code, ascending."""
        return self._order[self._starts[code] : self._starts[code + 1]]
