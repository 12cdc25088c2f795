"""The data set: questions of one split with their images, in batches that share images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from lavis_ext.datasets.base import Batch, PictureDataset
from lavis_ext.datasets.gqa.mismatched import MismatchedQuestions
from lavis_ext.datasets.gqa.question_table import Codes, QuestionTable
from lavis_ext.datasets.gqa.scoring_files import ScoringFiles
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import Rows


class QuestionBatch(Batch, total=False):
    """A batch of Q questions about I images, with K mismatched questions for each question.

    Only ``images``, ``image_index``, ``text_input`` and ``ids`` are needed to answer; the rest is
    for training and scoring.
    """

    image_index: torch.Tensor
    """int64 [Q], the image of each question; on the host, wherever the images are."""
    text_input: list[str]
    """The questions [Q]."""
    mismatched_input: list[str]
    """Questions that don't belong to the image [Q * K], those of question q from q * K on."""
    answer: list[str | None]
    """The answers [Q]."""


class GqaFusionDataset(PictureDataset):
    """One split. Indexed with ``BatchRows``, it returns that batch as :class:`QuestionBatch`.

    Args:
        table: the questions.
        images: where their images are.
        files: what GQA's metrics need beside the questions.
        processor: RGB picture to the images of each stream.
        text_processor: question to question.
        mismatched: draws mismatched questions; None for none.
    """

    noun = "questions"
    # Reading it from a GPU, to pack questions by it, would wait for all that the GPU has to do.
    on_host = ("image_index",)

    def __init__(
        self,
        table: QuestionTable,
        images: ImageFolder,
        *,
        files: ScoringFiles,
        processor: Callable[[Image.Image], dict[str, torch.Tensor]],
        text_processor: Callable[[str], str],
        mismatched: MismatchedQuestions | None = None,
    ) -> None:
        super().__init__(images, processor)
        self.table = table
        self.files = files
        self.text_processor = text_processor
        self.mismatched = mismatched

    def __len__(self) -> int:
        return len(self.table)

    def image_codes(self) -> Codes:
        """Integers [rows], equal for the questions of one image."""
        return self.table.codes("image_id")

    def all_images(self) -> set[str]:
        """Ids of all images of the split."""
        return set(self.table.values("image_id"))

    def image_ids(self, rows: Rows) -> list[str]:
        """The image of each question."""
        (found,) = self.table.texts(rows, "image_id")
        return found

    def ids(self, rows: Rows) -> list[str]:
        """The questions' ids."""
        (found,) = self.table.texts(rows, "question_id")
        return found

    def fields(self, rows: Rows, image_index: list[int], epoch: int) -> dict[str, Any]:
        """Questions, mismatched ones, and answers."""
        questions, answers = self.table.texts(rows, "question", "answer")
        drawn = [r for row in rows for r in self._mismatched_rows(int(row), epoch)]
        (mismatched,) = self.table.texts(drawn, "question")
        return {
            "image_index": torch.tensor(image_index),
            "text_input": self._processed(questions),
            "mismatched_input": self._processed(mismatched),
            "answer": answers,
        }

    def _processed(self, questions: Sequence[str]) -> list[str]:
        return [self.text_processor(question) for question in questions]

    def _mismatched_rows(self, row: int, epoch: int) -> list[int]:
        return self.mismatched.draw(row, epoch) if self.mismatched else []
