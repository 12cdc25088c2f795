"""Find the words that are said of an image in its fused tokens."""

import math
import re

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.metrics import Metric
from lavis_ext.encoders.blip.packed_questions import send
from lavis_ext.objectives.base import (
    FusedBatch,
    HeadSizes,
    Objective,
    ObjectiveConfig,
    ObjectiveOutput,
)
from lavis_ext.registry import registry

NEGATED = re.compile(r"\b(?:no|not|nor|neither|none|nothing|never|without)\b|n't", re.IGNORECASE)
"""Statements that may name what the image doesn't show."""
RARE = -4.0
"""Initial score: before training, a token shows hardly any word."""


@registry.register_objective("words")
class WordsObjective(Objective):
    """Word detectors on single tokens, trained with texts about whole images.

    Multiple instance learning with noisy-or, as by Fang et al., "From Captions to Visual Concepts
    and Back" (CVPR 2015), section 3: an image shows a word if at least one token does. Each token
    of an object gets a gradient from every word that is said of it, so that a fusion learns small
    parts long before a question about them can be answered. An image's words are those of its
    statements in the batch, without negated ones; the words of other images' statements are taken
    to be false of it. The loss of an image is divided by the number of its words. It is the same
    for all of its questions, and 0 without words. The detectors are used in training only.
    """

    metrics = (Metric("found", "share"),)
    needs_statements = True

    def __init__(self, config: ObjectiveConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.norm = nn.LayerNorm(sizes.token_width)
        self.detectors = nn.Linear(sizes.token_width, sizes.words)
        nn.init.constant_(self.detectors.bias, RARE)

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses, and the share of each image's words that are found (probability above 1/2)."""
        index = batch.samples["image_index"]
        words, shown = self._words(batch, index)
        tokens = self.norm(batch.fused)
        columns = send(words, tokens.device)
        scores = F.linear(tokens, self.detectors.weight[columns], self.detectors.bias[columns])
        absent = F.logsigmoid(-scores).float().sum(dim=1)  # log of the probability, [I, V]
        present = torch.log(-torch.expm1(absent.clamp(max=-torch.finfo(absent.dtype).eps)))
        shown = send(shown, tokens.device)
        count = shown.sum(dim=1)
        losses = -torch.where(shown > 0, present, absent).sum(dim=1) / count.clamp(min=1)
        losses = losses.where(count > 0, 0.0)
        found = ((absent.detach() < -math.log(2)) * shown).sum(dim=1)
        rows = send(index, tokens.device)
        return ObjectiveOutput(losses[rows], {"found": (found / count.clamp(min=1))[rows].sum()})

    def _words(self, batch: FusedBatch, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of V words said in the batch, and 1.0 for those said of each image, [I, V]."""
        said = [
            each if each and not NEGATED.search(each) else "" for each in batch.samples["statement"]
        ]
        ids = batch.encoder.tokenizer(said, add_special_tokens=False)["input_ids"]
        words, places = torch.unique(
            torch.tensor([word for each in ids for word in each], dtype=torch.long),
            return_inverse=True,
        )
        images = index.repeat_interleave(torch.tensor([len(each) for each in ids]))
        shown = torch.zeros(len(batch.fused), len(words))
        shown[images, places] = 1.0
        return words, shown
