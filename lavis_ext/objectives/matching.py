"""Matched against mismatched questions: by BLIP's text encoder (``itm``) or a light ``head``."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.objectives.base import (
    FusedBatch,
    HeadSizes,
    Objective,
    ObjectiveConfig,
    ObjectiveOutput,
)
from lavis_ext.objectives.question_head import QuestionHead, QuestionHeadConfig
from lavis_ext.registry import registry

MATCH = 1
"""Index of "the question belongs to the image" in BLIP's matching scores (Li et al., 2022)."""

MATCHING_METRICS = (
    Metric("accuracy", "share"),
    Metric("matched_accuracy", "share"),
    Metric("mismatched_accuracy", "share"),
)

CALIBRATION_PACE = 10.0
"""Adam moves any parameter by one learning rate a step; scale and shift have further to go."""


@dataclass
class ItmConfig(ObjectiveConfig):
    """Options of ``itm``."""

    calibrated: bool = option(
        False,
        "Learn a scale and a shift of BLIP's score besides. Of captions it knows how sure it may "
        "be, of questions it doesn't; without them the fused tokens have to make up for that.",
    )


class Calibration(nn.Module):
    """Scale and shift of the score for "match" (Platt, 1999). They start as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [P, 2] of P pairs to the same shape; that for "no match" becomes 0."""
        match = scores[:, MATCH] - scores[:, 1 - MATCH]
        scale = (CALIBRATION_PACE * self.log_scale).exp()
        match = scale * match + CALIBRATION_PACE * self.shift
        return torch.stack([torch.zeros_like(match), match], dim=-1)


@registry.register_objective("itm")
class ItmObjective(Objective):
    """Question matching through BLIP's text encoder and ITM head (Li et al., 2022, section 3.2).

    Both are frozen with pretrained weights: the gradient passes through them into the fusion.
    """

    Config = ItmConfig
    metrics = MATCHING_METRICS
    needs_mismatched = True

    def __init__(self, config: ItmConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.head = Calibration() if config.calibrated else nn.Identity()

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses and accuracies of matched and mismatched pairs."""
        return _matching(self.head(batch.encoder.match(batch.fused, batch.pairs)), len(batch))


@registry.register_objective("head")
class HeadObjective(Objective):
    """Question matching by a light head of its own, for training alone.

    No gradient passes through the text encoder, which makes it the cheapest objective.
    """

    Config = QuestionHeadConfig
    metrics = MATCHING_METRICS
    needs_mismatched = True

    def __init__(self, config: QuestionHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.head = QuestionHead(config, sizes, outputs=2)

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses and accuracies of matched and mismatched pairs."""
        scores = self.head(batch.fused, batch.pairs, batch.pair_states)
        return _matching(scores, len(batch))


def _matching(scores: torch.Tensor, count: int) -> ObjectiveOutput:
    """From scores [Q + Q*K, 2], those of the ``count`` matched pairs first.

    A question's matched pair weighs as much as its mismatched ones together: however many there
    are, saying always "mismatched" stays as bad as saying always "match".
    """
    labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    labels[:count] = MATCH
    losses = F.cross_entropy(scores, labels, reduction="none")
    right = (scores.detach().argmax(dim=-1) == labels).float()
    mismatched_right = right[count:].view(count, -1).mean(dim=1)
    return ObjectiveOutput(
        0.5 * (losses[:count] + losses[count:].view(count, -1).mean(dim=1)),
        {
            "accuracy": 0.5 * (right[:count] + mismatched_right).sum(),
            "matched_accuracy": right[:count].sum(),
            "mismatched_accuracy": mismatched_right.sum(),
        },
    )
