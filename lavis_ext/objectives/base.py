"""What an objective is: from fused tokens and questions to a loss for each question.

Q questions, K mismatched questions for each, I images, N patches, D grid width, L question tokens,
W text width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa import FusionSamples
from lavis_ext.datasets.vocabulary import AnswerVocabulary

if TYPE_CHECKING:
    from lavis_ext.encoders.blip import BlipEncoder


@dataclass
class ObjectiveConfig:
    """Options that every objective has."""

    weight: float = option(1.0, "Weight of its loss in the sum.", above=0)


class TextStates(NamedTuple):
    """Questions as the text encoder leaves them, and which positions hold tokens."""

    states: torch.Tensor
    """float [Q, L, W]."""
    mask: torch.Tensor
    """int64 [Q, L], 1 for a token and 0 for padding."""


class FusedBatch:
    """What objectives work on. What several of them need is computed once.

    Args:
        fused: the fused tokens of each image, float [I, 1+N, D].
        samples: the batch.
        encoder: BLIP, for its text encoder and question matching.
    """

    def __init__(self, fused: torch.Tensor, samples: FusionSamples, encoder: "BlipEncoder") -> None:
        self.samples = samples
        self.encoder = encoder
        self.image_index = samples["image_index"]
        self.fused = fused[self.image_index]
        """The fused tokens of each question's image, float [Q, 1+N, D]."""

    @cached_property
    def questions(self) -> TextStates:
        """The questions through the text encoder alone, no image [Q]."""
        return self._encoded(self.samples["text_input"])

    @cached_property
    def mismatched(self) -> TextStates:
        """The mismatched questions likewise [Q * K]."""
        return self._encoded(self.samples["mismatched_input"])

    @property
    def mismatched_count(self) -> int:
        """K."""
        return len(self.samples["mismatched_input"]) // len(self.samples["text_input"])

    @cached_property
    def fused_of_mismatched(self) -> torch.Tensor:
        """The fused tokens that each mismatched question is held against, [Q * K, 1+N, D]."""
        return self.fused.repeat_interleave(self.mismatched_count, dim=0)

    def _encoded(self, texts: list[str]) -> TextStates:
        input_ids, mask = self.encoder.tokenize(texts)
        return TextStates(self.encoder.encode_question(input_ids, mask), mask)


class ObjectiveOutput(NamedTuple):
    """Losses of a batch, kept apart from what is reported."""

    losses: torch.Tensor
    """float [Q], with gradient."""
    report: dict[str, torch.Tensor]
    """Sums over the batch's questions of what is averaged in the log and the evaluation."""


@dataclass(frozen=True)
class HeadSizes:
    """What an objective's head has to fit."""

    token_width: int
    text_width: int
    vocabulary: AnswerVocabulary | None


class Objective(ABC):
    """Register a subclass with ``registry.register_objective`` and name it in the config.

    Class attributes:
        Config: its options, a dataclass that extends ObjectiveConfig.
        figures: names of what its report holds beside the loss.
        needs_mismatched: whether batches must hold mismatched questions.
        needs_vocabulary: whether it needs the answer vocabulary; its options then have
            ``vocabulary_size``.
    """

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    figures: ClassVar[tuple[str, ...]] = ()
    needs_mismatched: ClassVar[bool] = False
    needs_vocabulary: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def build_head(self, sizes: HeadSizes) -> nn.Module | None:
        """Parameters of its own; they become part of the fusion network. None without any."""
        return None

    @abstractmethod
    def __call__(self, batch: FusedBatch, head: nn.Module | None) -> ObjectiveOutput:
        """Losses and report of a batch. ``head`` is what ``build_head`` made."""

    def predict(self, batch: FusedBatch, head: nn.Module | None) -> list[str] | None:
        """Answers [Q], where the objective learns to answer; None where it doesn't."""
        return None
