"""MoVA's adapter: gated cross-attention to every expert (Zong et al., NeurIPS 2024).

Differences from the authors' code (multimodal_projector/builder.py):

- Its gate reads the question too. Here it reads the image alone, because an image is encoded once
  for all of its questions.
- Its gate is a softmax over experts, which is always 1 for a single one. Here each stream has a
  sigmoid.
- Nothing halves the update, shrinks the grid or projects to a language model, and attention and
  feed-forward have no inner LayerNorm.

Shapes: B images, P prefix tokens and N patches of the first stream, M of another, H heads of E
channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, GridFusion, check_heads
from lavis_ext.fusion.stream_adapter import StreamLayout
from lavis_ext.registry import registry

BASE = 10000.0
"""Base of the rotary frequencies."""
AXES = 4
"""Channels of a head come in fours: a pair for rows and one for columns."""


@dataclass
class ExpertAttentionConfig(FusionConfig):
    """Options of ``expert_attention``."""

    name: str = option("expert_attention", "the fusion, by its registered name")
    gate: bool = option(
        False, "add the output to the first stream through a further gate that starts at 0"
    )
    depth: int = option(3, "blocks; MoVA has 3", at_least=1)
    heads: int = option(
        16, "attention heads; divides d_model into multiples of 4 channels", at_least=1
    )
    zero_init: bool = option(
        True,
        "start the output layers of attention and feed-forward at 0, so that the output at step 0 "
        "is the first stream (in its own width, d_model null)",
    )

    def check_together(self, where: str) -> None:
        """Raise UserError unless the heads divide the width."""
        if self.d_model is not None:
            check_heads(self.heads, self.d_model, where, each=AXES)


def rotary_angles(
    grid: tuple[int, int], first: tuple[int, int], channels: int, device: torch.device
) -> Tensor:
    """Angles float32 [h*w, channels/2] of a grid's patches: half for rows, half for columns.

    Positions are those of patch centers, in patches of the grid ``first``, so that patches of two
    grids at one place of the image have equal angles.
    """
    frequencies = BASE ** -(torch.arange(channels // AXES, device=device) * AXES / channels)
    rows, columns = (
        (torch.arange(own, device=device) + 0.5) * (size / own)
        for own, size in zip(grid, first, strict=True)
    )
    angles = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([each.reshape(-1, 1) * frequencies for each in angles], dim=-1)


def rotated(x: Tensor, angles: Tensor, prefix: int = 0) -> Tensor:
    """Tokens [B, H, prefix + L, E], with the last L rotated by ``angles`` [L, E/2].

    Rotary position embedding (Su et al., 2021), channel i with channel i + E/2.
    """
    before, patches = x[:, :, :prefix], x[:, :, prefix:]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    one, two = patches.chunk(2, dim=-1)
    turned = torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)
    return torch.cat((before, turned), dim=2) if prefix else turned


class RotaryAttention(nn.Module):
    """Multi-head attention to patches of any grid, with two-dimensional rotary positions."""

    def __init__(self, d_model: int, width: int, heads: int, *, zero_init: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(width, d_model, bias=False)
        self.value = nn.Linear(width, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model)
        if zero_init:
            _start_from_zero(self.output)

    def forward(self, x: Tokens, context: Tokens) -> Tensor:
        """Attend from ``x`` [B, P+N, d_model] to ``context`` [B, Q+M, width]: [B, P+N, d_model]."""
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query(x.values), self.key(context.values), self.value(context.values))
        )
        channels, device = query.shape[-1], query.device
        query = rotated(query, rotary_angles(x.grid, x.grid, channels, device), x.prefix)
        angles = rotary_angles(context.grid, x.grid, channels, device)
        key = rotated(key, angles, context.prefix)
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return attended


class SwiGlu(nn.Module):
    """Feed-forward part with a gated hidden layer (Shazeer, 2020), 8/3 times as wide."""

    def __init__(self, d_model: int, *, zero_init: bool) -> None:
        super().__init__()
        hidden = 8 * d_model // 3
        self.gate = nn.Linear(d_model, hidden)
        self.up = nn.Linear(d_model, hidden)
        self.output = nn.Linear(hidden, d_model)
        if zero_init:
            _start_from_zero(self.output)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, d_model] to the same shape."""
        out: Tensor = self.output(F.silu(self.gate(x)) * self.up(x))
        return out


def _start_from_zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


class ExpertBlock(nn.Module):
    """Gated cross-attention to each other stream, self-attention, feed-forward part."""

    def __init__(self, config: ExpertAttentionConfig, d_model: int, widths: Sequence[int]) -> None:
        super().__init__()
        zero_init, heads = config.zero_init, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in widths)
        self.expert_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.cross_attention = nn.ModuleList(
            RotaryAttention(d_model, width, heads, zero_init=zero_init) for width in widths
        )
        self.gate = nn.Sequential(
            nn.Linear(d_model, d_model), nn.GELU(), nn.Linear(d_model, len(widths))
        )
        last = self.gate[-1]
        assert isinstance(last, nn.Linear)
        _start_from_zero(last)
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = RotaryAttention(d_model, d_model, heads, zero_init=zero_init)
        self.mlp_norm = nn.LayerNorm(d_model)
        self.mlp = SwiGlu(d_model, zero_init=zero_init)

    def forward(self, first: Tokens, others: Sequence[Tokens]) -> Tokens:
        """The first stream's tokens, updated."""
        x = first.values
        gates = torch.sigmoid(self.gate(x.mean(dim=1, keepdim=True)))  # [B, 1, streams]
        update = torch.zeros_like(x)
        for place, other in enumerate(others):
            query = first._replace(values=self.norms[place](x))
            context = other._replace(values=self.expert_norms[place](other.values))
            attended = self.cross_attention[place](query, context)
            update = update + gates[..., place : place + 1] * attended
        x = x + update
        normed = first._replace(values=self.attention_norm(x))
        x = x + self.attention(normed, normed)
        return first._replace(values=x + self.mlp(self.mlp_norm(x)))


@registry.register_fusion("expert_attention")
class ExpertAttention(GridFusion):
    """Blocks of gated cross-attention to the whole of every other stream."""

    Config = ExpertAttentionConfig

    def __init__(
        self, config: ExpertAttentionConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        check_heads(config.heads, d_model, each=AXES)
        widths = [layout.width for layout in layouts[1:]]
        self.blocks = nn.ModuleList(
            ExpertBlock(config, d_model, widths) for _ in range(config.depth)
        )

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        for block in self.blocks:
            first = block(first, others)
        return first.values
