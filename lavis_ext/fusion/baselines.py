"""What DIFNet is compared with: either stream alone, and their plain sum."""

from dataclasses import dataclass

from torch import Tensor

from lavis_ext.config.schema import option
from lavis_ext.fusion.base import FusionConfig, FusionEncoder
from lavis_ext.registry import registry


@dataclass
class GridOnlyConfig(FusionConfig):
    """No options: BLIP's tokens pass as they are."""

    name: str = option("grid_only", "the fusion, by its registered name")
    gate: bool = option(False, "there is nothing to gate", choices=(False,))
    d_model: int | None = option(None, "the grid stream's width", choices=(None,))


@registry.register_fusion("grid_only")
class GridOnly(FusionEncoder):
    """BLIP alone. Nothing is trained; the score to beat."""

    Config = GridOnlyConfig
    streams = ("grid",)
    gated = False

    def forward(self, grid_tokens: Tensor, segmentation_tokens: Tensor) -> Tensor:
        """The grid tokens themselves."""
        return grid_tokens


@dataclass
class SegmentationOnlyConfig(FusionConfig):
    """No options beyond the width."""

    name: str = option("segmentation_only", "the fusion, by its registered name")
    gate: bool = option(False, "a gate would add the grid stream", choices=(False,))


@registry.register_fusion("segmentation_only")
class SegmentationOnly(FusionEncoder):
    """EfficientSAM alone, brought to BLIP's width and grid by the trained adapter."""

    Config = SegmentationOnlyConfig
    streams = ("segmentation",)
    gated = False

    def forward(self, grid_tokens: Tensor, segmentation_tokens: Tensor) -> Tensor:
        """The adapted segmentation tokens."""
        return segmentation_tokens


@dataclass
class SumConfig(FusionConfig):
    """No options beyond gate and width."""

    name: str = option("sum", "the fusion, by its registered name")


@registry.register_fusion("sum")
class Sum(FusionEncoder):
    """The streams added token by token, with no interaction between tokens."""

    Config = SumConfig

    def forward(self, grid_tokens: Tensor, segmentation_tokens: Tensor) -> Tensor:
        """Grid tokens plus adapted segmentation tokens."""
        return grid_tokens + segmentation_tokens
