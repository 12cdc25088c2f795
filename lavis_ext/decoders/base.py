"""The contract of a model that writes texts about pictures.

B pictures, L target tokens, V tokens of the vocabulary, W channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class TargetScores(NamedTuple):
    """A model's view of given target tokens, each seen after the ones before it."""

    logits: Tensor
    """[B, L, V], those at place l are for token l."""
    hidden_states: Tensor
    """[B, L, W], of the last layer."""
    mask: Tensor
    """bool [B, L], False for padding."""


class GenerativeModel(ABC):
    """A model that writes texts about pictures.

    Images are float [B, 3, S, S] in [0, 1] or uint8; a model normalizes them itself.
    """

    @abstractmethod
    def generate(
        self, images: Tensor, prompts: Sequence[str], decoding: Mapping[str, Any] | None = None
    ) -> list[str]:
        """A text for each image and its prompt. ``decoding`` are options of the model's own."""

    @abstractmethod
    def score_targets(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]
    ) -> TargetScores:
        """Logits and hidden states for given texts, differentiable down to the images."""
