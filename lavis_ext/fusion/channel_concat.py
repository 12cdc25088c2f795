"""Concatenation of channels, then an MLP on each token.

Prismatic VLMs (Karamcheti et al., ICML 2024; dinosiglip_vit.py) concatenate the channels of two
encoders' patches, Eagle (Shi et al., ICLR 2025; multi_backbone_channel_concatenation_encoder.py)
those of up to five, resized to one grid, and project them by an MLP. Here the MLP leads back to the
first stream's width instead of a language model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, GridFusion
from lavis_ext.fusion.stream_adapter import StreamLayout, patches_at
from lavis_ext.registry import registry


@dataclass
class ChannelConcatConfig(FusionConfig):
    """Options of ``channel_concat``."""

    name: str = option("channel_concat", "the fusion, by its registered name")
    hidden: int | None = option(
        None, "hidden width of the MLP; null is the fusion's width", at_least=1
    )


@registry.register_fusion("channel_concat")
class ChannelConcat(GridFusion):
    """LayerNorm, linear, GELU, linear on the channels of all streams at a place.

    The others are resized to the first's grid. Its prefix tokens get the mean of their patches.
    """

    Config = ChannelConcatConfig

    def __init__(
        self, config: ChannelConcatConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        total = sum(layout.width for layout in layouts)
        hidden = d_model if config.hidden is None else config.hidden
        self.mlp = nn.Sequential(
            nn.LayerNorm(total), nn.Linear(total, hidden), nn.GELU(), nn.Linear(hidden, d_model)
        )

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        aligned = [patches_at(first, other) for other in others]
        fused: Tensor = self.mlp(torch.cat((first.values, *aligned), dim=-1))
        return fused
