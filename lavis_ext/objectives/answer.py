"""The answer as a class of the training split's vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.vocabulary import OUTSIDE, AnswerVocabulary
from lavis_ext.encoders.blip.packed_questions import send
from lavis_ext.objectives.base import FusedBatch, HeadSizes, Objective, ObjectiveOutput
from lavis_ext.objectives.question_head import QuestionHead, QuestionHeadConfig
from lavis_ext.registry import registry


@dataclass
class AnswerConfig(QuestionHeadConfig):
    """Options of the objective ``answer``."""

    layers: int = option(2, "Transformer layers.", at_least=1)
    vocabulary_size: int = option(1843, "Answers to choose from, most frequent first.", at_least=2)
    label_smoothing: float = option(0.0, "Share of a target spread evenly.", at_least=0, at_most=1)


@registry.register_objective("answer")
class AnswerObjective(Objective):
    """Cross-entropy over the answer vocabulary, from fused tokens and question.

    A question whose answer the vocabulary lacks has no loss and counts as wrong.
    """

    Config = AnswerConfig
    figures = ("accuracy", "outside_vocabulary")
    needs_vocabulary = True

    def __init__(self, config: AnswerConfig) -> None:
        super().__init__(config)
        self._vocabulary: AnswerVocabulary | None = None

    def build_head(self, sizes: HeadSizes) -> nn.Module:
        """The head, with a score for each answer."""
        if sizes.vocabulary is None:
            raise ValueError("The objective `answer` needs the training split's vocabulary.")
        self._vocabulary = sizes.vocabulary
        return QuestionHead(self.config, sizes, outputs=len(sizes.vocabulary))

    def __call__(self, batch: FusedBatch, head: Any) -> ObjectiveOutput:
        """Losses, the right answers, and how many answers are outside the vocabulary."""
        scores = head(batch.fused, batch.questions, batch.question_states)
        targets = send(self._known_answers.targets(batch.samples["answer"]), scores.device)
        losses = F.cross_entropy(
            scores,
            targets,
            reduction="none",
            ignore_index=OUTSIDE,
            label_smoothing=self.config.label_smoothing,
        )
        report = {
            "accuracy": (scores.detach().argmax(dim=-1) == targets).float().sum(),
            "outside_vocabulary": (targets == OUTSIDE).float().sum(),
        }
        return ObjectiveOutput(losses, report)

    def predict(self, batch: FusedBatch, head: Any) -> list[str]:
        """The answer with the highest score for each question."""
        scores: torch.Tensor = head(batch.fused, batch.questions, batch.question_states)
        best = scores.argmax(dim=-1)
        return [self._known_answers.answers[place] for place in best.tolist()]

    @property
    def _known_answers(self) -> AnswerVocabulary:
        assert self._vocabulary is not None, "build_head comes first"
        return self._vocabulary
