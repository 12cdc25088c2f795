"""The data set: questions of one split with their images, in batches that share images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.faults import DataFaultsConfig, UnreadableImage, patiently
from lavis_ext.datasets.gqa.mismatched import MismatchedQuestions
from lavis_ext.datasets.gqa.question_table import Codes, QuestionTable
from lavis_ext.datasets.gqa.scoring_files import ScoringFiles
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import BatchRows, Rows
from lavis_ext.datasets.seeds import seeded


class FusionSamples(TypedDict, total=False):
    """A batch of Q questions about I images, with K mismatched questions for each question.

    Only ``grid_image``, ``segmentation_image``, ``image_index`` and ``text_input`` are needed to
    answer; the rest is for training and scoring. Stored tokens stand in place of the images.
    """

    grid_image: torch.Tensor
    """uint8 [I, 3, S, S], BLIP's images."""
    segmentation_image: torch.Tensor
    """uint8 [I, 3, S', S'], EfficientSAM's images."""
    grid_tokens: torch.Tensor
    """[I, 1+N, D], BLIP's tokens as stored, in place of its images."""
    grid_scales: torch.Tensor
    """float32 [I, 1+N], what the tokens are to be multiplied by, if anything."""
    grid_shape: tuple[int, int]
    """Rows and columns of the patches."""
    segmentation_tokens: torch.Tensor
    """[I, M, C], EfficientSAM's; what follows is theirs too."""
    segmentation_scales: torch.Tensor
    segmentation_shape: tuple[int, int]
    image_index: torch.Tensor
    """int64 [Q], the image of each question; on the host, wherever the images are."""
    text_input: list[str]
    """The questions [Q]."""
    mismatched_input: list[str]
    """Questions that don't belong to the image [Q * K], those of question q from q * K on."""
    answer: list[str | None]
    """The answers [Q]."""
    question_id: list[str]
    """[Q]."""
    global_size: int
    """Questions in the batch over all processes; losses are divided by it."""
    unreadable: list[UnreadableImage]
    """Images that couldn't be read, where there are such: in training their questions are left out,
    in evaluation they are asked about a black image."""
    stand_in: bool
    """Whether nothing of the batch could be read, and what stands here is to count for nothing."""


class ImageFeatures(Protocol):
    """What encoders gave for images, stored."""

    def read(self, images: Sequence[str], epoch: int) -> dict[str, Any]:
        """The tokens of these images, by their names in :class:`FusionSamples`."""

    def blank(self, count: int) -> dict[str, Any]:
        """The same of so many images of which nothing is known: zeros."""


@dataclass(frozen=True)
class DataFault:
    """What a loader worker hands over in place of a batch it can't make.

    An exception would come out of the loader wrapped in the worker's traceback.
    """

    message: str


class GqaFusionDataset(Dataset[FusionSamples]):
    """One split. Indexed with :class:`BatchRows`, it returns that batch as :class:`FusionSamples`.

    Args:
        table: the questions.
        images: where their images are.
        files: what GQA's metrics need beside the questions.
        vis_processor: RGB image to the tensors ``grid_image`` and ``segmentation_image``.
        text_processor: question to question.
        mismatched: draws mismatched questions; None for none.

    Set ``features`` to have stored tokens read in place of the images, and ``faults`` to say what
    becomes of images that can't be read.
    """

    def __init__(
        self,
        table: QuestionTable,
        images: ImageFolder,
        *,
        files: ScoringFiles,
        vis_processor: Callable[[Image.Image], dict[str, torch.Tensor]],
        text_processor: Callable[[str], str],
        mismatched: MismatchedQuestions | None = None,
    ) -> None:
        self.table = table
        self.images = images
        self.files = files
        self.vis_processor = vis_processor
        self.text_processor = text_processor
        self.mismatched = mismatched
        self.features: ImageFeatures | None = None
        self.faults = DataFaultsConfig()

    def __len__(self) -> int:
        return len(self.table)

    def image_codes(self) -> Codes:
        """Integers [rows], equal for the questions of one image."""
        return self.table.codes("image_id")

    def __getitem__(self, row: int) -> FusionSamples:
        """The question in ``row`` as a batch of one, in its first epoch."""
        batch = self.__getitems__(BatchRows(np.array([row]), epoch=0, global_size=1))
        if isinstance(batch, DataFault):
            raise UserError(batch.message)
        return batch

    def __getitems__(self, batch: BatchRows) -> FusionSamples | DataFault:
        """Called by torch's DataLoader with what the batch sampler yields."""
        try:
            return self._samples(batch)
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """The loader's collate function: batches come out of ``__getitems__`` collated."""
        return batch

    def _samples(self, batch: BatchRows) -> FusionSamples:
        rows = batch.rows
        (about,) = self.table.texts(rows, "image_id")
        images, seen, reasons = self._readable(np.unique(about).tolist(), batch.epoch)
        faults: FusionSamples = {}
        if reasons:
            faults["unreadable"] = self._unreadable(rows, reasons)
            if batch.training and images:
                rows = rows[np.isin(about, images)]
            elif batch.training:
                # The other processes' batches may be sound, and all have to take the step together.
                faults["stand_in"] = True
                rows, images, seen = rows[:1], about[:1], self._blank(1)
            else:
                images, seen = [*images, *reasons], _joined(seen, self._blank(len(reasons)))
        place = {image: index for index, image in enumerate(images)}
        ids, about, questions, answers = self.table.texts(
            rows, "question_id", "image_id", "question", "answer"
        )
        drawn = [r for row in rows for r in self._mismatched_rows(int(row), batch.epoch)]
        (mismatched,) = self.table.texts(drawn, "question")
        return {
            **seen,
            "image_index": torch.tensor([place[image] for image in about]),
            "text_input": [self.text_processor(q) for q in questions],
            "mismatched_input": [self.text_processor(q) for q in mismatched],
            "answer": answers,
            "question_id": ids,
            "global_size": batch.global_size,
            **faults,
        }

    def _readable(
        self, images: list[str], epoch: int
    ) -> tuple[list[str], FusionSamples, dict[str, str]]:
        """Those of the images that can be read, what is seen of them, and why others can't be.

        Raises UserError for these, where the run is to stop.
        """
        try:
            return images, patiently(lambda: self._seen(images, epoch), self.faults), {}
        except UserError:
            if self.faults.then == "stop":
                raise
        reasons = {}
        for image in images:
            try:
                self._seen([image], epoch)
            except UserError as error:
                reasons[image] = str(error)
        kept = [image for image in images if image not in reasons]
        return kept, self._seen(kept, epoch) if kept else {}, reasons

    def _unreadable(self, rows: Rows, reasons: dict[str, str]) -> list[UnreadableImage]:
        ids, about = self.table.texts(rows, "question_id", "image_id")
        asked: dict[str, list[str]] = {image: [] for image in reasons}
        for question, image in zip(ids, about, strict=True):
            if image in asked:
                asked[image].append(question)
        return [UnreadableImage(image, reasons[image], asked[image]) for image in reasons]

    def _seen(self, images: list[str], epoch: int) -> FusionSamples:
        """What a batch holds of its images; a processor's randomness follows image and epoch."""
        if self.features is not None:
            return self.features.read(images, epoch)  # type: ignore[return-value]
        seen = []
        for image in images:
            with seeded(image, epoch):
                seen.append(self.vis_processor(self.images.read(image)))
        return _stacked(seen)

    def _blank(self, count: int) -> FusionSamples:
        """The same of so many black images."""
        if self.features is not None:
            return self.features.blank(count)  # type: ignore[return-value]
        with seeded("black"):
            return _stacked([self.vis_processor(Image.new("RGB", (64, 64)))] * count)

    def _mismatched_rows(self, row: int, epoch: int) -> list[int]:
        return self.mismatched.draw(row, epoch) if self.mismatched else []


def _stacked(seen: list[dict[str, torch.Tensor]]) -> FusionSamples:
    return {
        "grid_image": torch.stack([each["grid_image"] for each in seen]),
        "segmentation_image": torch.stack([each["segmentation_image"] for each in seen]),
    }


def _joined(first: FusionSamples, second: FusionSamples) -> FusionSamples:
    """The images of both, one after another."""
    if not first:
        return second
    joined: Any = {
        name: torch.cat([first[name], value]) if isinstance(value, torch.Tensor) else value  # type: ignore[literal-required]
        for name, value in second.items()
    }
    return joined
