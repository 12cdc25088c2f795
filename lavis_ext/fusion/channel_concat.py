"""Concatenation of channels, then an MLP on each token.

Prismatic VLMs (Karamcheti et al., ICML 2024; dinosiglip_vit.py) concatenate the channels of two
encoders' patches, Eagle (Shi et al., ICLR 2025; multi_backbone_channel_concatenation_encoder.py)
those of up to five, resized to one grid, and project them by an MLP. Here the MLP leads back to the
first stream's width instead of a language model's. Finer patches can also be concatenated instead
of resized, the "pixel shuffle" of InternVL (Chen et al., 2024, section 3.1), or brought to the
first stream's grid by convolutions with stride 2, as SAM's tokens are in Vary (Wei et al., 2023,
section 3.2) and DeepSeek-VL (Lu et al., 2024, section 3.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, GridFusion
from lavis_ext.fusion.stream_adapter import (
    Size,
    StreamLayout,
    in_windows,
    patches_at,
    resize_grid,
    window_of,
    with_prefix,
)
from lavis_ext.registry import registry


@dataclass
class ChannelConcatConfig(FusionConfig):
    """Options of ``channel_concat``."""

    name: str = option("channel_concat", "the fusion, by its registered name")
    hidden: int | None = option(
        None, "hidden width of the MLP; null is the fusion's width", at_least=1
    )
    finer: str = option(
        "resize",
        "How other streams come to the first's grid: resize averages their patches; windows "
        "concatenates all patches in a patch of the first; convolutions halves their grid as often "
        "as needed by convolutions of 3x3, which see what lies across several patches",
        choices=("resize", "windows", "convolutions"),
    )
    first: bool = option(
        True, "read the first stream; false leaves the others alone, in its layout"
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for a gate without the first stream, which it would add."""
        if self.gate and not self.first:
            raise UserError(
                f"{where}.first is false, but {where}.gate adds the first stream; set {where}.gate="
                "false."
            )


class StridedConvolutions(nn.Module):
    """Patches on a finer grid to a coarser one, by convolutions of 3x3 with stride 2.

    As the finer grid has to be the coarser one times a power of two, it is resized to the next such
    grid first. Equal grids get one convolution with stride 1.
    """

    def __init__(self, layout: StreamLayout, grid: Size, width: int) -> None:
        super().__init__()
        self.source = layout.grid
        halvings = math.ceil(math.log2(max(window_of(grid, layout.grid))))
        self.target = (grid[0] << halvings, grid[1] << halvings)
        self.norm = nn.LayerNorm(layout.width)
        self.layers = nn.Sequential()
        before = layout.width
        for stride in [2] * halvings or [1]:
            self.layers.append(nn.Conv2d(before, width, 3, stride=stride, padding=1))
            self.layers.append(nn.GELU())
            before = width

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, M, C] to [B, N, width]."""
        resized = resize_grid(self.norm(patches), self.source, self.target)
        image = resized.transpose(1, 2).unflatten(2, self.target)
        found: Tensor = self.layers(image)
        return found.flatten(2).transpose(1, 2)


@registry.register_fusion("channel_concat")
class ChannelConcat(GridFusion):
    """LayerNorm, linear, GELU, linear on the channels of all streams at a place.

    The others come to the first's grid as ``finer`` says. Its prefix tokens get the mean over all
    places.
    """

    Config = ChannelConcatConfig

    def __init__(
        self, config: ChannelConcatConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        self._first, self._finer = config.first, config.finer
        grid = layouts[0].grid
        self._windows: list[Size] | None = None
        widths = [layout.width for layout in layouts[1:]]
        if config.finer == "windows":
            self._windows = [window_of(grid, layout.grid) for layout in layouts[1:]]
            widths = [
                rows * columns * width
                for (rows, columns), width in zip(self._windows, widths, strict=True)
            ]
        elif config.finer == "convolutions":
            self.convolutions = nn.ModuleList(
                StridedConvolutions(layout, grid, d_model) for layout in layouts[1:]
            )
            widths = [d_model] * len(widths)
        total = d_model * config.first + sum(widths)
        hidden = d_model if config.hidden is None else config.hidden
        self.mlp = nn.Sequential(
            nn.LayerNorm(total), nn.Linear(total, hidden), nn.GELU(), nn.Linear(hidden, d_model)
        )

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        aligned = [first.values] if self._first else []
        aligned += [self._aligned(first, place, other) for place, other in enumerate(others)]
        fused: Tensor = self.mlp(torch.cat(aligned, dim=-1))
        return fused

    def _aligned(self, first: Tokens, place: int, other: Tokens) -> Tensor:
        """Channels of the other stream number ``place`` at the first's tokens, [B, P+N, C]."""
        if self._finer == "resize":
            return patches_at(first, other)
        if self._windows is None:
            found = self.convolutions[place](other.values)
        else:
            window = self._windows[place]
            found = in_windows(other.values, other.grid, first.grid, window).flatten(2)
        return with_prefix(first, found, found)
