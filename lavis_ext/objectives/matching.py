"""Tell matched questions from mismatched ones with BLIP's text encoder or a light head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.encoders.blip.packed_questions import PackedQuestions
from lavis_ext.encoders.blip.passes import AttentionProbe
from lavis_ext.objectives.base import (
    FusedBatch,
    HeadSizes,
    Objective,
    ObjectiveConfig,
    ObjectiveOutput,
)
from lavis_ext.objectives.question_head import QuestionHeadConfig, build_head
from lavis_ext.registry import registry

if TYPE_CHECKING:
    from lavis_ext.encoders.blip.encoder import BlipEncoder

MATCH = 1
"""Index of "the question belongs to the image" in BLIP's matching logits (Li et al., 2022)."""

MATCHING_METRICS = (
    Metric("accuracy", "share"),
    Metric("matched_accuracy", "share"),
    Metric("mismatched_accuracy", "share"),
)

CALIBRATION_PACE = 10.0
"""Multiplies scale and shift, since Adam's steps are as large as the learning rate."""


@dataclass
class ItmConfig(ObjectiveConfig):
    """Options of ``itm``."""

    calibrated: bool = option(
        False,
        "Also learn a scale and a shift of BLIP's score. BLIP is calibrated for captions, not for "
        "questions; otherwise the fused tokens have to compensate for that.",
    )
    distillation: float = option(
        0.0,
        "Weight of keeping BLIP's own matching: the scores, and the patches that words attend to, "
        "as they are with the first stream's tokens in place of the fused ones. 0 for none.",
        at_least=0,
    )
    distilled_block: int | None = option(
        None,
        "Block of the text encoder whose attention is kept, from 0; null is 7 of BLIP's 12, from "
        "which heat maps are made, and as deep in others.",
        at_least=0,
    )


class Calibration(nn.Module):
    """Scale and shift of the score for "match" (Platt, 1999), initially the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """Calibrated scores [P, 2] of P pairs; the score for "no match" becomes 0."""
        match = scores[:, MATCH] - scores[:, 1 - MATCH]
        scale = (CALIBRATION_PACE * self.log_scale).exp()
        match = scale * match + CALIBRATION_PACE * self.shift
        return torch.stack([torch.zeros_like(match), match], dim=-1)


@registry.register_objective("itm")
class ItmObjective(Objective):
    """Question matching through BLIP's text encoder and ITM head (Li et al., 2022, section 3.2).

    Both are pretrained and frozen; gradients pass through them into the fusion.
    """

    Config = ItmConfig
    metrics = MATCHING_METRICS
    needs_mismatched = True
    needs_blip = True

    def __init__(self, config: ItmConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        block = config.distilled_block
        self._distilled_block = 7 * sizes.text_layers // 12 if block is None else block
        if self._distilled_block >= sizes.text_layers:
            raise UserError(
                f"model.objectives.itm.distilled_block is {block}, but the text encoder has "
                f"the blocks 0 to {sizes.text_layers - 1}; take that of "
                "model.question_matching.block_num."
            )
        self.head = Calibration() if config.calibrated else nn.Identity()

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses and accuracies of matched and mismatched pairs."""
        if not self.config.distillation:
            blip = cast("BlipEncoder", batch.encoder)
            return _matching(self.head(blip.match(batch.fused, batch.pairs)), len(batch))
        scores, attention = self._watched(batch, batch.fused)
        with torch.no_grad():
            own = self._watched(batch, batch.unfused)
        found = _matching(self.head(scores), len(batch))
        change = _divergence(*own, scores, attention, batch.pairs)
        kept = self.config.distillation * _by_question(change, len(batch))
        return found._replace(losses=found.losses + kept)

    def _watched(
        self, batch: FusedBatch, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [P, 2], and attention [R, P, 1+N] of the distilled block, mean over heads."""
        seen: list[torch.Tensor] = []
        probe = AttentionProbe(self._distilled_block, seen.append)
        scores = cast("BlipEncoder", batch.encoder).match(tokens, batch.pairs, probe=probe)
        return scores, seen[0].mean(dim=1)


@registry.register_objective("head")
class HeadObjective(Objective):
    """Question matching with a light head that is used in training only.

    It is the cheapest objective, since no gradient passes through the text encoder.
    """

    Config = QuestionHeadConfig
    metrics = MATCHING_METRICS
    needs_mismatched = True

    def __init__(self, config: QuestionHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.head = build_head(config, sizes, outputs=2)

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses and accuracies of matched and mismatched pairs."""
        scores = self.head(batch.fused, batch.pairs, batch.pair_states)
        return _matching(scores, len(batch))


def _divergence(
    own_scores: torch.Tensor,
    own_attention: torch.Tensor,
    scores: torch.Tensor,
    attention: torch.Tensor,
    packed: PackedQuestions,
) -> torch.Tensor:
    """Kullback-Leibler divergence of scores and, mean over tokens, of attention: [P] of P pairs.

    As in distillation (Hinton et al., 2015), from BLIP's own to those with fused tokens.
    """
    of_scores = F.kl_div(
        scores.log_softmax(dim=-1),
        own_scores.log_softmax(dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    tiny = torch.finfo(attention.dtype).tiny
    changed = own_attention * (own_attention.clamp(min=tiny) / attention.clamp(min=tiny)).log()
    by_token = packed.unpack(changed.sum(dim=-1)) * packed.mask
    return of_scores + by_token.sum(dim=1) / packed.mask.sum(dim=1)


def _by_question(losses: torch.Tensor, count: int) -> torch.Tensor:
    """[Q] from losses [Q + Q*K] of pairs: a matched pair weighs as all mismatched ones together."""
    return 0.5 * (losses[:count] + losses[count:].view(count, -1).mean(dim=1))


def _matching(scores: torch.Tensor, count: int) -> ObjectiveOutput:
    """Losses and accuracies from scores [Q + Q*K, 2], those of the ``count`` matched pairs first.

    A question's matched pair has the same weight as all of its mismatched ones together, so that a
    constant prediction has chance accuracy for any K.
    """
    labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    labels[:count] = MATCH
    losses = F.cross_entropy(scores, labels, reduction="none")
    right = (scores.detach().argmax(dim=-1) == labels).float()
    mismatched_right = right[count:].view(count, -1).mean(dim=1)
    return ObjectiveOutput(
        _by_question(losses, count),
        {
            "accuracy": 0.5 * (right[:count] + mismatched_right).sum(),
            "matched_accuracy": right[:count].sum(),
            "mismatched_accuracy": mismatched_right.sum(),
        },
    )
