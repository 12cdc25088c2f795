"""Heads from image tokens and question to scores: a small transformer, or glimpses."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.attention import attend
from lavis_ext.encoders.blip.packed_questions import PackedQuestions
from lavis_ext.objectives.base import HeadSizes, ObjectiveConfig
from lavis_ext.objectives.glimpse_head import GlimpseHead


@dataclass
class QuestionHeadConfig(ObjectiveConfig):
    """Options of objectives with a head that reads image tokens and question."""

    head: str = option(
        "transformer",
        "transformer: question tokens attend to each other and to image tokens; glimpses: the "
        "question as a whole attends to image tokens (low-rank bilinear attention, Kim et al., "
        "2017), cheaper and with less to overfit",
        choices=("transformer", "glimpses"),
    )
    width: int = option(256, "Width of the head.", at_least=1)
    layers: int = option(1, "Transformer layers of the head transformer.", at_least=1)
    heads: int = option(4, "Attention heads of the head transformer.", at_least=1)
    glimpses: int = option(
        2, "Attention maps over words and over image tokens of the head glimpses.", at_least=1
    )
    dropout: float = option(
        0.1,
        "Dropout on the transformer's feed-forward and residual branches, or before the glimpses' "
        "scores.",
        at_least=0,
        at_most=1,
    )
    input_dropout: float = option(
        0.0, "Dropout on image tokens and question states.", at_least=0, at_most=1
    )
    attention_dropout: float = option(
        0.0,
        "Dropout on the head's attention probabilities; on the CPU it costs the fused kernel.",
        at_least=0,
        at_most=1,
    )

    def check_together(self, where: str) -> None:
        """Raise UserError unless ``heads`` divides ``width``."""
        if self.width % self.heads:
            raise UserError(
                f"{where}.width is {self.width}; it must be a multiple of {where}.heads, which is "
                f"{self.heads}."
            )


class PackedDecoderLayer(nn.TransformerDecoderLayer):
    """torch's layer for questions packed by image: an image's keys and values are computed once.

    Only ``batch_first`` with ``norm_first`` is implemented.
    """

    def __init__(self, config: QuestionHeadConfig) -> None:
        super().__init__(
            config.width,
            config.heads,
            dim_feedforward=4 * config.width,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # torch's layer has one dropout for everything.
        self.self_attn.dropout = self.multihead_attn.dropout = config.attention_dropout

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
    """Attention of ``states`` [R, P, W] to ``source`` with the module's weights: [R, P, W]."""
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
    """Question tokens attend to each other and to image tokens; their mean gives the scores.

    The question is required, because a matched and a mismatched pair can have the same image.
    """

    def __init__(self, config: QuestionHeadConfig, sizes: HeadSizes, outputs: int) -> None:
        super().__init__()
        self.question_projection = nn.Linear(sizes.text_width, config.width)
        self.token_projection = nn.Linear(sizes.token_width, config.width)
        self.layers = nn.ModuleList(PackedDecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.score = nn.Linear(config.width, outputs)

    def forward(
        self, tokens: torch.Tensor, packed: PackedQuestions, states: torch.Tensor
    ) -> torch.Tensor:
        """Scores [Q, outputs] from image tokens [I, 1+N, D] and packed questions [R, P, W]."""
        memory = self.token_projection(self.input_dropout(tokens))
        states = self.question_projection(self.input_dropout(states))
        for layer in self.layers:
            states = layer(states, memory, packed.question, packed.row_image)
        weights = packed.mask.unsqueeze(-1).to(states.dtype)
        pooled = (packed.unpack(states) * weights).sum(dim=1) / weights.sum(dim=1)
        scores: torch.Tensor = self.score(self.norm(pooled))
        return scores


def build_head(config: QuestionHeadConfig, sizes: HeadSizes, outputs: int) -> nn.Module:
    """The head that ``config.head`` names, from tokens [I, N, D] and questions to [Q, outputs]."""
    if config.head == "glimpses":
        return GlimpseHead(config, sizes, outputs)
    return QuestionHead(config, sizes, outputs)
