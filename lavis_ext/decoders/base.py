"""Interface of models that generate texts about pictures.

B pictures, L target tokens, V tokens of the vocabulary, W channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class TargetScores(NamedTuple):
    """A model's output for given target tokens (teacher forcing)."""

    logits: Tensor
    """[B, L, V]; position l predicts token l."""
    hidden_states: Tensor
    """[B, L, W], from the last layer."""
    mask: Tensor
    """bool [B, L], False for padding."""


class GenerativeModel(ABC):
    """A model that generates texts about pictures.

    Images are float [B, 3, S, S] in [0, 1] or uint8; the model normalizes them.
    """

    @abstractmethod
    def generate(
        self, images: Tensor, prompts: Sequence[str], decoding: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Generate a text for each image and prompt. ``decoding`` has options of the model."""

    @abstractmethod
    def score_targets(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]
    ) -> TargetScores:
        """Logits and hidden states for given texts, differentiable with respect to the images."""
