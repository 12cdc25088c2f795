"""A small transformer that reads an image's tokens with a question in mind."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.attention import attend
from lavis_ext.encoders.blip.packed_questions import PackedQuestions
from lavis_ext.objectives.base import HeadSizes, ObjectiveConfig


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


class PackedDecoderLayer(nn.TransformerDecoderLayer):
    """torch's layer, for questions packed by image: an image's keys and values are computed once.

    Only ``batch_first`` and ``norm_first`` are known here.
    """

    def forward(  # type: ignore[override]
        self,
        states: torch.Tensor,
        memory: torch.Tensor,
        question: torch.Tensor,
        row_image: torch.Tensor | None,
    ) -> torch.Tensor:
        """States [R, P, W] to the same shape, from memory [I, 1+N, W].

        ``question`` and ``row_image`` are those of ``PackedQuestions``.
        """
        together = (question[:, :, None] == question[:, None, :])[:, None]
        normed = self.norm1(states)
        found = _attention(self.self_attn, normed, normed, None, together)
        states = states + self.dropout1(found)
        found = _attention(self.multihead_attn, self.norm2(states), memory, row_image, None)
        states = states + self.dropout2(found)
        inner = self.dropout(self.activation(self.linear1(self.norm3(states))))
        return states + self.dropout3(self.linear2(inner))


def _attention(
    module: nn.MultiheadAttention,
    states: torch.Tensor,
    source: torch.Tensor,
    row_source: torch.Tensor | None,
    seen: torch.Tensor | None,
) -> torch.Tensor:
    """What ``states`` [R, P, W] find in ``source``, through the module's weights."""
    width = module.embed_dim
    weight, bias = module.in_proj_weight, module.in_proj_bias
    queries = F.linear(states, weight[:width], bias[:width])
    keys, values = F.linear(source, weight[width:], bias[width:]).chunk(2, dim=-1)
    if row_source is not None:
        keys, values = keys[row_source], values[row_source]
    dropout = module.dropout if module.training else 0.0
    mixed = attend(queries, keys, values, module.num_heads, seen=seen, dropout=dropout)
    projected: torch.Tensor = module.out_proj(mixed)
    return projected


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
            PackedDecoderLayer(
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

    def forward(
        self, tokens: torch.Tensor, packed: PackedQuestions, states: torch.Tensor
    ) -> torch.Tensor:
        """Scores [Q, outputs] from image tokens [I, 1+N, D] and packed questions [R, P, W]."""
        memory = self.token_projection(tokens)
        states = self.question_projection(states)
        for layer in self.layers:
            states = layer(states, memory, packed.question, packed.row_image)
        weights = packed.mask.unsqueeze(-1).to(states.dtype)
        pooled = (packed.unpack(states) * weights).sum(dim=1) / weights.sum(dim=1)
        scores: torch.Tensor = self.score(self.norm(pooled))
        return scores
