"""Made-up questions in a data set's published numbers, to estimate a run before its data is there.

They cost what the real ones cost: as many questions, images and answers, of usual length. Nothing
can be learned from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lavis_ext.datasets.questions.files import FileRead, QuestionFiles, Row

COLORS = ("red", "green", "blue", "white", "black", "brown", "gray", "yellow")
TEXTS_OF_A_COLOR = 250


@dataclass(frozen=True)
class PublishedSplit:
    """Published numbers of a split's questions, of their images and of the data set's answers."""

    questions: int
    images: int
    answers: int


@dataclass(frozen=True)
class MadeUpQuestions(QuestionFiles):
    """A split of these numbers, with equally many questions about each image."""

    numbers: PublishedSplit

    def read(self) -> tuple[Iterator[Row], tuple[FileRead, ...]]:
        """Rows of the questions; no file is read."""
        return self._rows(), ()

    def _rows(self) -> Iterator[Row]:
        questions, images, answers = (
            self.numbers.questions,
            self.numbers.images,
            self.numbers.answers,
        )
        for row in range(questions):
            color = COLORS[row % len(COLORS)]
            number = row // len(COLORS) % TEXTS_OF_A_COLOR
            text = f"is the {color} thing to the left of number {number}?"
            image = f"image {row * images // questions}"
            yield (str(row), image, text, f"answer {row % answers}", None, None, None, "{}")
