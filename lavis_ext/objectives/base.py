"""Interface of objectives, which compute a loss per question from fused tokens and texts.

Q questions, K mismatched questions for each, I images, N patches, D token width, L question tokens,
W text width; R rows of P positions, in which questions about the same image are packed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.encoders.blip.packed_questions import PackedQuestions, send
from lavis_ext.encoders.questions import QuestionReader

if TYPE_CHECKING:
    from lavis_ext.encoders.blip.encoder import BlipEncoder


@dataclass
class ObjectiveConfig:
    """Common options of objectives."""

    weight: float = option(1.0, "Weight of its loss in the total loss.", above=0)


class FusedPart(NamedTuple):
    """A frozen part of the model that reads fused tokens of its own, such as the captioner."""

    module: Any
    """The part."""
    tokens: torch.Tensor
    """Its fused image tokens, float [I, 1+N, D], with gradient."""


class FusedBatch:
    """Input of objectives. Values shared by several of them are computed once.

    A pair is a question and an image: first Q matched pairs, then Q * K mismatched ones; those of
    question q start at q * K.

    Args:
        fused: the fused tokens of each image, float [I, 1+N, D]; None if only other parts' are
            read.
        unfused: the first stream's tokens, in whose place the fused ones are, [I, 1+N, D]; None
            as for ``fused``.
        samples: the batch.
        encoder: encodes the questions. BLIP, unless the model has a question encoder of its own.
        parts: other parts with their fused tokens, by ``Objective.part``.
    """

    def __init__(
        self,
        fused: torch.Tensor | None,
        unfused: torch.Tensor | None,
        samples: QuestionBatch,
        encoder: QuestionReader,
        parts: Mapping[str, FusedPart] | None = None,
    ) -> None:
        self._fused = fused
        self._unfused = unfused
        self.samples = samples
        self.encoder = encoder
        self.parts = parts or {}
        self._known: dict[str, int] = {}
        self._states: torch.Tensor | None = None

    def __len__(self) -> int:
        """Q."""
        return len(self.samples["text_input"])

    @property
    def fused(self) -> torch.Tensor:
        """The fused tokens of each image, float [I, 1+N, D]."""
        return _given(self._fused)

    @property
    def unfused(self) -> torch.Tensor:
        """The first stream's tokens of each image, float [I, 1+N, D]."""
        return _given(self._unfused)

    @cached_property
    def questions(self) -> PackedQuestions:
        """The Q questions, packed by image."""
        index = self.samples["image_index"]
        return self.encoder.pack(self.samples["text_input"], index, len(self.fused))

    @cached_property
    def pairs(self) -> PackedQuestions:
        """The questions of the Q + Q * K pairs, packed by image."""
        index = self.samples["image_index"]
        count = len(self.samples["mismatched_input"]) // len(self)
        return self.encoder.pack(
            self._paired, torch.cat([index, index.repeat_interleave(count)]), len(self.fused)
        )

    @cached_property
    def question_states(self) -> torch.Tensor:
        """States of ``questions`` after the text encoder, without an image, float [R, P, W]."""
        return self.questions.pack(self._read(self.samples["text_input"]))

    @cached_property
    def pair_states(self) -> torch.Tensor:
        """States of ``pairs`` after the text encoder, without an image, float [R, P, W]."""
        return self.pairs.pack(self._read(self._paired))

    @cached_property
    def grounded_states(self) -> torch.Tensor:
        """States of ``questions`` that BLIP has read with the fused tokens, float [R, P, W]."""
        return cast("BlipEncoder", self.encoder).read_with_image(self.fused, self.questions)

    @property
    def _paired(self) -> list[str]:
        matched = self.samples.get("matched_input", self.samples["text_input"])
        return matched + self.samples["mismatched_input"]

    def _read(self, texts: list[str]) -> torch.Tensor:
        """Encode T texts to states [T, L, W]. Equal texts are encoded once."""
        unread = [text for text in dict.fromkeys(texts) if text not in self._known]
        if unread:
            # The number of rows is arbitrary; this one reuses the shapes of ``pairs``.
            states = self.encoder.read(unread, rows=len(self.fused))
            self._known |= {text: len(self._known) + i for i, text in enumerate(unread)}
            self._states = states if self._states is None else _stacked(self._states, states)
        assert self._states is not None
        places = torch.tensor([self._known[text] for text in texts])
        return self._states[send(places, self._states.device)]


def _stacked(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[A, L, W] and [B, M, W] to [A + B, max(L, M), W]."""
    length = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in (first, second)])


class ObjectiveOutput(NamedTuple):
    """Losses and metrics of a batch."""

    losses: torch.Tensor
    """float [Q], with gradient."""
    report: dict[str, torch.Tensor]
    """Metric sums over the batch's questions, averaged in logs and evaluations."""


@dataclass(frozen=True)
class HeadSizes:
    """Widths of an objective's inputs, blocks of the text encoder, and vocabularies."""

    token_width: int
    text_width: int
    text_layers: int
    vocabulary: AnswerVocabulary | None
    words: int
    """Words of the tokenizer."""


class Objective(nn.Module, ABC):
    """Base of objectives. Register a subclass with ``registry.register_objective``.

    Those in ``model.objectives`` are trained and saved with the fusion.

    Class attributes:
        Config: dataclass of its options, a subclass of ObjectiveConfig.
        metrics: metrics in its report besides the loss.
        needs_mismatched: whether batches need mismatched questions.
        needs_blip: whether BLIP has to read the questions, as it also reads images with them.
        needs_vocabulary: whether it needs the answer vocabulary; its options then have
            ``vocabulary_size``.
        needs_statements: whether batches need ``statement``, answers as sentences.
        predicts: whether ``predict`` answers.
        part: part of the model that it trains a fusion through, a key of ``model.fusions``; None
            for ``model.fusion``, whose tokens replace the first stream's.
    """

    Config: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs_mismatched: ClassVar[bool] = False
    needs_blip: ClassVar[bool] = False
    needs_vocabulary: ClassVar[bool] = False
    needs_statements: ClassVar[bool] = False
    predicts: ClassVar[bool] = False
    part: ClassVar[str | None] = None

    def __init__(self, config: Any, sizes: HeadSizes) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def reads_with_blip(cls, config: Any) -> bool:
        """``needs_blip``, unless it depends on the options."""
        return cls.needs_blip

    @abstractmethod
    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses and metric sums of a batch."""

    def predict(self, batch: FusedBatch) -> list[str] | None:
        """Answers [Q], or None for an objective that doesn't learn to answer."""
        return None


def _given(tokens: torch.Tensor | None) -> torch.Tensor:
    if tokens is None:
        raise ValueError("This batch has only tokens of other parts; see Objective.part.")
    return tokens
