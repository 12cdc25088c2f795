"""LLaVA-HR's mixture-of-resolution adapter (Luo et al., ICLR 2025).

Written from the authors' class S2FStitchAlignModuleV2 (multipath_encoder_wapper.py), which calls
the stream of coarse patches fast and that of fine ones slow. They put three adapters between the
layers of the fast encoder; here the encoders are frozen and one adapter follows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, GridFusion
from lavis_ext.fusion.stream_adapter import StreamLayout, patches_at
from lavis_ext.registry import registry

KERNEL = 7
"""Side of the depthwise convolution over the first stream's patches."""


@dataclass
class GatedAdapterConfig(FusionConfig):
    """Options of ``gated_adapter``."""

    name: str = option("gated_adapter", "the fusion, by its registered name")
    gate: bool = option(
        False, "add the output to the first stream through a further gate that starts at 0"
    )
    zero_init: bool = option(
        True,
        "start the projections of both branches at 0, so that the output at step 0 is the first "
        "stream (in its own width, d_model null)",
    )


class SlowBranch(nn.Module):
    """Projection of one other stream, and its gate."""

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__()
        # The authors' convolutions have kernels of one patch: they are linear layers.
        self.conv = nn.Linear(width, width)
        self.proj = nn.Linear(width, d_model)
        self.gate = nn.Sequential(
            nn.Linear(2 * d_model, d_model // 2), nn.GELU(), nn.Linear(d_model // 2, 1)
        )
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, fast: Tensor, first: Tokens, other: Tokens) -> Tensor:
        """Gated update [B, P+N, d_model] of the tokens ``fast``; the gate is one number an image.

        The stream is projected at its own resolution, then resized.
        """
        projected = other._replace(values=self.proj(F.gelu(self.conv(other.values))))
        slow = patches_at(first, projected)
        both = torch.cat((fast, slow), dim=-1)[:, first.prefix :]
        gate: Tensor = torch.tanh(self.gate(both.mean(dim=1, keepdim=True)))
        return gate * slow


@registry.register_fusion("gated_adapter")
class GatedAdapter(GridFusion):
    """Convolution over the first stream, plus each other stream by its gate.

    Prefix tokens skip the convolution and get the mean of the other streams' patches.
    """

    Config = GatedAdapterConfig

    def __init__(
        self, config: GatedAdapterConfig, d_model: int, layouts: Sequence[StreamLayout]
    ) -> None:
        super().__init__(config, d_model, layouts)
        self.fast_conv = nn.Conv2d(d_model, d_model, KERNEL, padding=KERNEL // 2, groups=d_model)
        self.fast_proj = nn.Linear(d_model, d_model)
        self.slow = nn.ModuleList(SlowBranch(layout.width, d_model) for layout in layouts[1:])
        nn.init.xavier_uniform_(self.fast_conv.weight)
        assert self.fast_conv.bias is not None
        nn.init.zeros_(self.fast_conv.bias)
        for proj in (self.fast_proj, *(branch.get_submodule("proj") for branch in self.slow)):
            assert isinstance(proj, nn.Linear)
            nn.init.zeros_(proj.bias)
            if config.zero_init:
                nn.init.zeros_(proj.weight)
            else:
                nn.init.xavier_uniform_(proj.weight)

    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fused tokens [B, P+N, d_model]."""
        prefix, patches = first.values[:, : first.prefix], first.values[:, first.prefix :]
        image = patches.transpose(1, 2).unflatten(2, first.grid)
        convolved = self.fast_conv(image).flatten(2).transpose(1, 2)
        fast = torch.cat((prefix, patches + self.fast_proj(F.gelu(convolved))), dim=1)
        fused = fast
        for branch, other in zip(self.slow, others, strict=True):
            fused = fused + branch(fast, first, other)
        return fused
