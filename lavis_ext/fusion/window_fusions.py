"""Fusions in which a patch attends to the finer patches in its own window.

``local_cross_attention`` is the patch info mining of Mini-Gemini (Li et al., 2024; mgm_arch.py),
``spatial_aggregator`` the spatial vision aggregator of Cambrian-1 (Tong et al., NeurIPS 2024;
vision_sampler.py).

Shapes: B images, P prefix tokens and N = h * w patches of the first stream, windows of r x s
patches of another, H heads of E channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, GridFusion, check_heads
from lavis_ext.fusion.stream_adapter import Size, StreamLayout, in_windows, window_of
from lavis_ext.registry import registry


class WindowedStream(nn.Module):
    """Keys and values of a stream, resized to a whole number of patches in each window."""

    def __init__(
        self, width: int, window: Size, d_model: int, *, bias: bool, positions: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, d_model, bias=bias))
        self.value = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, d_model, bias=bias))
        self.positions: nn.Parameter | None = None
        if positions and window != (1, 1):
            self.positions = nn.Parameter(torch.empty(window[0] * window[1], width))
            nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, patches: Tensor, source: Size, grid: Size) -> tuple[Tensor, Tensor]:
        """Patches [B, M, C] of a grid ``source`` to keys and values [B, N, r*s, d_model]."""
        windows = in_windows(patches, source, grid, self.window)
        if self.positions is not None:
            windows = windows + self.positions
        return self.key(windows), self.value(windows)


class WindowAttention(nn.Module):
    """Cross-attention of a patch to its window in every stream; prefix tokens attend to all of it.

    Queries, keys and values are each LayerNorm and a linear layer.

    Args:
        d_model: width of queries and output.
        grid: (h, w) of the queries.
        keys: layouts of the streams attended to.
        heads: H.
        bias: whether the linear layers have one.
        positions: whether keys and values know their place in the window, by a learned embedding.
    """

    def __init__(
        self,
        d_model: int,
        grid: Size,
        keys: Sequence[StreamLayout],
        heads: int,
        *,
        bias: bool,
        positions: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.LayerNorm(d_model), nn.Linear(d_model, d_model, bias=bias))
        self.streams = nn.ModuleList(
            WindowedStream(
                layout.width,
                window_of(grid, layout.grid),
                d_model,
                bias=bias,
                positions=positions,
            )
            for layout in keys
        )

    def forward(self, queries: Tensor, prefix: int, grid: Size, keys: Sequence[Tokens]) -> Tensor:
        """Queries [B, P+N, d_model] to the same shape. ``keys`` are tokens without prefix."""
        windowed = [
            stream(each.values, each.grid, grid)
            for stream, each in zip(self.streams, keys, strict=True)
        ]
        # [B, N, K, d_model], with K patches in the windows of all streams.
        key, value = (torch.cat(each, dim=2) for each in zip(*windowed, strict=True))
        query = self.query(queries)
        patches = self._local(query[:, prefix:], key, value)
        if not prefix:
            return patches
        whole = self._attended(query[:, :prefix], key.flatten(1, 2), value.flatten(1, 2))
        return torch.cat((whole, patches), dim=1)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries [B, P, d_model] and keys [B, N*K, d_model] to [B, P, d_model]."""
        heads = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value)
        )
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)

    def _local(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries [B, N, d_model] and keys [B, N, K, d_model] to [B, N, d_model].

        Each window is a head of its own, [B, N*H, K, E]: as a batch of its own, B*N of them
        would pass the 65,535 that a kernel's grid takes.
        """
        key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(1, 2)
            for each in (key, value)
        )
        single = query.unflatten(-1, (self.heads, -1)).flatten(1, 2)[:, :, None]
        mixed = F.scaled_dot_product_attention(single, key, value)
        return mixed[:, :, 0].unflatten(1, (-1, self.heads)).flatten(2)


@dataclass
class LocalCrossAttentionConfig(FusionConfig):
    """Options of ``local_cross_attention``."""

    name: str = option("local_cross_attention", "the fusion, by its registered name")
    heads: int = option(
        1, "attention heads; divides d_model. Mini-Gemini's attention has one", at_least=1
    )

    def check_together(self, where: str) -> None:
        """Raise UserError unless the heads divide the width."""
        if self.d_model is not None:
            check_heads(self.heads, self.d_model, where)


@registry.register_fusion("local_cross_attention")
class LocalCrossAttention(GridFusion):
    """Each patch plus what it attends to in its window of the other streams (Mini-Gemini).

    Mini-Gemini has no class token; here prefix tokens attend to the whole of the other streams. For
    streams that aren't finer than the first, a window holds one patch of each.
    """

    Config = LocalCrossAttentionConfig

    def __init__(
        self, config: LocalCrossAttentionConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        check_heads(config.heads, d_model)
        self.attention = WindowAttention(
            d_model, layouts[0].grid, layouts[1:], config.heads, bias=True, positions=False
        )

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        mined: Tensor = self.attention(first.values, first.prefix, first.grid, others)
        return first.values + mined


@dataclass
class SpatialAggregatorConfig(FusionConfig):
    """Options of ``spatial_aggregator``."""

    name: str = option("spatial_aggregator", "the fusion, by its registered name")
    depth: int = option(3, "layers; Cambrian-1 has 3 before its language model", at_least=1)
    heads: int = option(16, "attention heads; divides d_model", at_least=1)

    def check_together(self, where: str) -> None:
        """Raise UserError unless the heads divide the width."""
        if self.d_model is not None:
            check_heads(self.heads, self.d_model, where)


class AggregatorLayer(nn.Module):
    """One cross-attention layer of the spatial vision aggregator.

    Linear layers have no bias, as in the authors' code.
    """

    def __init__(
        self,
        d_model: int,
        grid: Size,
        keys: Sequence[StreamLayout],
        config: SpatialAggregatorConfig,
    ) -> None:
        super().__init__()
        self.context = nn.Linear(d_model, d_model, bias=False)
        self.inner = nn.Linear(2 * d_model, d_model, bias=False)
        self.attention = WindowAttention(
            d_model, grid, keys, config.heads, bias=False, positions=True
        )
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.norm = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, d_model, bias=False),
            nn.GELU(),
            nn.Linear(d_model, d_model, bias=False),
        )

    def forward(
        self, x: Tensor, context: Tensor, prefix: int, grid: Size, keys: Sequence[Tokens]
    ) -> Tensor:
        """Tokens [B, P+N, d_model] to the same shape; ``context`` is [B, 1, d_model]."""
        context = self.context(context).expand(-1, x.shape[1], -1)
        queries = self.inner(torch.cat((x, context), dim=-1))
        attended = self.output(self.attention(queries, prefix, grid, keys))
        aggregated: Tensor = self.mlp(self.norm(queries + attended))
        return x + aggregated


@registry.register_fusion("spatial_aggregator")
class SpatialAggregator(GridFusion):
    """The first stream's tokens as queries, every stream's patches in their window as keys.

    Cambrian-1 has learned queries, which aren't any stream's own tokens. Here the first stream's
    are the queries, so that what reads them finds them in their places, and its patches are keys
    too. Its global context is the mean of the first stream's patches.
    """

    Config = SpatialAggregatorConfig

    def __init__(
        self, config: SpatialAggregatorConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        check_heads(config.heads, d_model)
        self.layers = nn.ModuleList(
            AggregatorLayer(d_model, layouts[0].grid, layouts, config) for _ in range(config.depth)
        )

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        patches = first.values[:, first.prefix :]
        keys = (Tokens(patches, first.grid, 0), *others)
        context = patches.mean(dim=1, keepdim=True)
        fused = first.values
        for layer in self.layers:
            fused = layer(fused, context, first.prefix, first.grid, keys)
        return fused
