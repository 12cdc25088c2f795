"""A small transformer that reads an image's tokens with a question in mind."""

from dataclasses import dataclass

import torch
from torch import nn

from lavis_ext.config.schema import option
from lavis_ext.errors import UserError
from lavis_ext.objectives.base import HeadSizes, ObjectiveConfig, TextStates


@dataclass
class QuestionHeadConfig(ObjectiveConfig):
    """Options of objectives with a head of this kind."""

    width: int = option(256, "Width of the head.", at_least=1)
    layers: int = option(1, "Transformer layers.", at_least=1)
    heads: int = option(4, "Attention heads.", at_least=1)
    dropout: float = option(0.1, "Dropout within the head.", at_least=0, at_most=1)

    def check_together(self, where: str) -> None:
        """Heads share the width evenly."""
        if self.width % self.heads:
            raise UserError(f"{where}.width is {self.width}, which {self.heads} heads can't share.")


class QuestionHead(nn.Module):
    """Question tokens attend to each other and to the image's tokens; their mean gives the scores.

    Without the question a head could only tell images apart, and a matched pair and a mismatched
    one share their image.
    """

    def __init__(self, config: QuestionHeadConfig, sizes: HeadSizes, outputs: int) -> None:
        super().__init__()
        self.question_projection = nn.Linear(sizes.text_width, config.width)
        self.token_projection = nn.Linear(sizes.token_width, config.width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                config.width,
                config.heads,
                dim_feedforward=4 * config.width,
                dropout=config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.score = nn.Linear(config.width, outputs)

    def forward(self, tokens: torch.Tensor, question: TextStates) -> torch.Tensor:
        """Scores [Q, outputs] from image tokens [Q, 1+N, D] and questions [Q, L, W]."""
        memory = self.token_projection(tokens)
        states = self.question_projection(question.states)
        padding = question.mask == 0
        for layer in self.layers:
            states = layer(states, memory, tgt_key_padding_mask=padding)
        weights = question.mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        scores: torch.Tensor = self.score(self.norm(pooled))
        return scores
