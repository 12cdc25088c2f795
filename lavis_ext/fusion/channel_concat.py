"""Concatenation of channels, then an MLP on each token.

Prismatic VLMs (Karamcheti et al., ICML 2024; dinosiglip_vit.py) concatenate the channels of two
encoders' patches, Eagle (Shi et al., ICLR 2025; multi_backbone_channel_concatenation_encoder.py)
those of up to five, resized to one grid, and project them by an MLP. Here the MLP leads back to the
first stream's width instead of a language model's. Finer patches can also be concatenated instead
of resized, the "pixel shuffle" of InternVL (Chen et al., 2024, section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, GridFusion
from lavis_ext.fusion.stream_adapter import (
    StreamLayout,
    in_windows,
    patches_at,
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
    windows: bool = option(
        False,
        "concatenate all patches of another stream that lie in a patch of the first, instead of "
        "resizing that stream",
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


@registry.register_fusion("channel_concat")
class ChannelConcat(GridFusion):
    """LayerNorm, linear, GELU, linear on the channels of all streams at a place.

    The others are resized to the first's grid, or cut into windows, one for each of its places. Its
    prefix tokens get the mean over all places.
    """

    Config = ChannelConcatConfig

    def __init__(
        self, config: ChannelConcatConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        self._first = config.first
        self._windows = [
            window_of(layouts[0].grid, layout.grid) if config.windows else (1, 1)
            for layout in layouts[1:]
        ]
        total = d_model * config.first
        for (rows, columns), layout in zip(self._windows, layouts[1:], strict=True):
            total += rows * columns * layout.width
        hidden = d_model if config.hidden is None else config.hidden
        self.mlp = nn.Sequential(
            nn.LayerNorm(total), nn.Linear(total, hidden), nn.GELU(), nn.Linear(hidden, d_model)
        )

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        aligned = [first.values] if self._first else []
        for window, other in zip(self._windows, others, strict=True):
            if window == (1, 1):
                aligned.append(patches_at(first, other))
            else:
                windows = in_windows(other.values, other.grid, first.grid, window).flatten(2)
                aligned.append(with_prefix(first, windows, windows))
        fused: Tensor = self.mlp(torch.cat(aligned, dim=-1))
        return fused
