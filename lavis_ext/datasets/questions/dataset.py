"""The data set of a split's questions and images, in batches that share images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from lavis_ext.datasets.base import Batch, PictureDataset
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.questions.mismatched import MismatchedQuestions
from lavis_ext.datasets.questions.statements import MismatchedStatements, Statements
from lavis_ext.datasets.questions.table import Codes, QuestionTable
from lavis_ext.datasets.samplers import Rows


class QuestionBatch(Batch, total=False):
    """A batch of Q questions about I images, with K mismatched questions for each question.

    Answering needs only ``images``, ``image_index``, ``text_input`` and ``ids``; the rest is for
    training and scoring.
    """

    image_index: torch.Tensor
    """int64 [Q], index of each question's image; always on the host."""
    text_input: list[str]
    """Questions [Q]."""
    matched_input: list[str]
    """Texts that match the images [Q]: the questions, or statements that answer them."""
    mismatched_input: list[str]
    """Texts that don't [Q * K], such as questions about other images; those of question q start at
    q * K."""
    answer: list[str | None]
    """Answers [Q]."""
    statement: list[str | None]
    """Answers as sentences [Q], see ``Statements``; absent unless asked for."""


class QuestionDataset(PictureDataset):
    """One split. Indexed with ``BatchRows``, it returns that batch as :class:`QuestionBatch`.

    Args:
        table: questions of the split.
        images: folder of their images.
        processor: maps an RGB picture to each stream's image.
        text_processor: maps a question to the model's input text.
        mismatched: draws mismatched questions; None for none.
        statements: fill ``statement`` of batches; None for no such field.
    """

    noun = "questions"
    # On the GPU, packing questions by it would force a synchronization.
    on_host = ("image_index",)

    def __init__(
        self,
        table: QuestionTable,
        images: ImageFolder,
        *,
        processor: Callable[[Image.Image], dict[str, torch.Tensor]],
        text_processor: Callable[[str], str],
        mismatched: MismatchedQuestions | None = None,
        statements: Statements | None = None,
    ) -> None:
        super().__init__(images, processor)
        self.table = table
        self.text_processor = text_processor
        self.mismatched = mismatched
        self.statements = statements

    def __len__(self) -> int:
        return len(self.table)

    def image_codes(self) -> Codes:
        """Integers [rows], equal for questions about the same image."""
        return self.table.codes("image_id")

    def all_images(self) -> set[str]:
        """Ids of all images of the split."""
        return set(self.table.values("image_id"))

    def image_ids(self, rows: Rows) -> list[str]:
        """Image id of each row."""
        (found,) = self.table.texts(rows, "image_id")
        return found

    def ids(self, rows: Rows) -> list[str]:
        """Question id of each row."""
        (found,) = self.table.texts(rows, "question_id")
        return found

    def compared(self, rows: Rows) -> Sequence[Sequence[str | None]]:
        """Question ids, image ids, questions and answers of these rows."""
        return self.table.texts(rows, "question_id", "image_id", "question", "answer")

    def fields(self, rows: Rows, image_index: list[int], epoch: int) -> dict[str, Any]:
        """Questions, mismatched questions, answers and, if asked for, statements."""
        questions, answers = self.table.texts(rows, "question", "answer")
        asked = self._processed(questions)
        matched: list[str] = asked
        mismatched: list[str] = []
        if self.mismatched is not None:
            drawn = [r for row in rows for r in self.mismatched.draw(int(row), epoch)]
            if isinstance(self.mismatched, MismatchedStatements):
                matched = self._processed(self.mismatched.statements.to_match(rows))
                mismatched = self.mismatched.statements.to_match(drawn)
            else:
                (mismatched,) = self.table.texts(drawn, "question")
        found = {
            "image_index": torch.tensor(image_index),
            "text_input": asked,
            "matched_input": matched,
            "mismatched_input": self._processed(mismatched),
            "answer": answers,
        }
        if self.statements is not None:
            found["statement"] = self.statements.sentences(rows)
        return found

    def _processed(self, questions: Sequence[str]) -> list[str]:
        return [self.text_processor(question) for question in questions]
