"""Answer through BLIP's frozen question answering."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.encoders.blip.packed_questions import send
from lavis_ext.objectives.base import (
    FusedBatch,
    HeadSizes,
    Objective,
    ObjectiveConfig,
    ObjectiveOutput,
)
from lavis_ext.registry import registry

if TYPE_CHECKING:
    from lavis_ext.decoders.blip_vqa import ReadQuestions


@dataclass
class VqaConfig(ObjectiveConfig):
    """Options of the objective ``vqa``."""

    vocabulary_size: int = option(
        1843,
        "Number of answers that are saved with the weights for `model.vqa.inference: rank`, the "
        "most frequent ones.",
        at_least=2,
    )


@registry.register_objective("vqa")
class VqaObjective(Objective):
    """Cross-entropy of the answer's text, through BLIP's frozen question answering.

    Its text encoder reads the question and its own image tokens, fused with the other streams
    (``model.fusions.vqa``), and its decoder predicts each word of the answer from those before it
    (Li et al., 2022, section 4.4). The loss of an answer is the mean over its words and [SEP]. A
    question without an answer has no loss.
    """

    Config = VqaConfig
    metrics = (Metric("without_answer", "share", "min"),)
    needs_vocabulary = True
    predicts = True
    part: ClassVar[str] = "vqa"

    def __init__(self, config: VqaConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        if sizes.vocabulary is None:
            raise ValueError("The objective `vqa` needs the training split's vocabulary.")
        self.vocabulary = sizes.vocabulary

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses, and the number of questions without an answer."""
        module, read = self._read(batch)
        answers = batch.samples["answer"]
        known = send(torch.tensor([each is not None for each in answers]), read.states.device)
        losses = module.losses(read, [each or "" for each in answers])
        return ObjectiveOutput(losses.where(known, 0.0), {"without_answer": (~known).float().sum()})

    def predict(self, batch: FusedBatch) -> list[str]:
        """Answers by ``model.vqa.inference``; those to rank are the vocabulary's."""
        module, read = self._read(batch)
        answers: list[str] = module.answer(read, self.vocabulary.answers)
        return answers

    def _read(self, batch: FusedBatch) -> tuple[Any, "ReadQuestions"]:
        module, tokens = batch.parts[self.part]
        samples = batch.samples
        return module, module.read(tokens, samples["image_index"], samples["text_input"])
