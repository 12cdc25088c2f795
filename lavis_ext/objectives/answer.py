"""Answering as classification over the training split's vocabulary."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.datasets.questions.vocabulary import OUTSIDE, AnswerVocabulary
from lavis_ext.encoders.blip.packed_questions import send
from lavis_ext.objectives.base import FusedBatch, HeadSizes, Objective, ObjectiveOutput
from lavis_ext.objectives.question_head import QuestionHeadConfig, build_head
from lavis_ext.registry import registry


@dataclass
class AnswerConfig(QuestionHeadConfig):
    """Options of the objective ``answer``."""

    layers: int = option(2, "Transformer layers of the head transformer.", at_least=1)
    vocabulary_size: int = option(
        1843, "Number of answers to choose from, the most frequent ones.", at_least=2
    )
    vocabulary_min_count: int = option(
        1,
        "Minimum number of training questions with an answer for it to be a choice.",
        at_least=1,
    )
    grounded: bool = option(
        False,
        "BLIP reads the question together with the fused tokens, as in its question answering (Li "
        "et al., 2022, Figure 5), instead of alone. So words find what they name before the head "
        "has learned anything.",
    )
    label_smoothing: float = option(
        0.0, "Share of a target that is spread evenly over all answers.", at_least=0, at_most=1
    )


@registry.register_objective("answer")
class AnswerObjective(Objective):
    """Cross-entropy over the answer vocabulary, from fused tokens and question.

    A question with an answer outside the vocabulary has no loss and counts as wrong.
    """

    Config = AnswerConfig
    metrics = (Metric("accuracy", "share"), Metric("outside_vocabulary", "share", None))
    needs_vocabulary = True
    predicts = True

    def __init__(self, config: AnswerConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        if sizes.vocabulary is None:
            raise ValueError("The objective `answer` needs the training split's vocabulary.")
        self.vocabulary: AnswerVocabulary = sizes.vocabulary
        self.head = build_head(config, sizes, outputs=len(sizes.vocabulary))

    @classmethod
    def reads_with_blip(cls, config: AnswerConfig) -> bool:
        """Whether the question is read with the image."""
        return config.grounded

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses, and numbers of correct answers and of answers outside the vocabulary."""
        scores = self._scores(batch)
        targets = send(self.vocabulary.targets(batch.samples["answer"]), scores.device)
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

    def predict(self, batch: FusedBatch) -> list[str]:
        """The answer with the highest score for each question."""
        best = self._scores(batch).argmax(dim=-1)
        return [self.vocabulary.answers[place] for place in best.tolist()]

    def _scores(self, batch: FusedBatch) -> torch.Tensor:
        """[Q, answers]."""
        states = batch.grounded_states if self.config.grounded else batch.question_states
        scores: torch.Tensor = self.head(batch.fused, batch.questions, states)
        return scores
