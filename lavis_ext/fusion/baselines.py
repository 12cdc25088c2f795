"""What DIFNet is compared with: the first stream alone, the others alone, and the plain sum."""

from dataclasses import dataclass

from torch import Tensor

from lavis_ext.config.schema import option
from lavis_ext.fusion.base import FusionConfig, FusionEncoder
from lavis_ext.registry import registry


@dataclass
class FirstOnlyConfig(FusionConfig):
    """No options: the first stream's tokens pass as they are."""

    name: str = option("first_only", "the fusion, by its registered name")
    gate: bool = option(False, "there is nothing to gate", choices=(False,))
    d_model: int | None = option(None, "the first stream's width", choices=(None,))


@registry.register_fusion("grid_only")  # its name while the first stream was always called grid
@registry.register_fusion("first_only")
class FirstOnly(FusionEncoder):
    """The first stream alone. Nothing is trained; the score to beat."""

    Config = FirstOnlyConfig
    reads = "first"
    gated = False

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The first stream's tokens themselves."""
        return first


@dataclass
class OthersOnlyConfig(FusionConfig):
    """No options beyond the width."""

    name: str = option("others_only", "the fusion, by its registered name")
    gate: bool = option(False, "a gate would add the first stream", choices=(False,))


@registry.register_fusion("segmentation_only")  # its name while there was one other, called so
@registry.register_fusion("others_only")
class OthersOnly(FusionEncoder):
    """The streams after the first, brought to its width and layout by the adapter, and added."""

    Config = OthersOnlyConfig
    reads = "others"
    gated = False

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The other streams' adapted tokens."""
        return summed(others)


@dataclass
class SumConfig(FusionConfig):
    """No options beyond gate and width."""

    name: str = option("sum", "the fusion, by its registered name")


@registry.register_fusion("sum")
class Sum(FusionEncoder):
    """The streams added token by token, with no interaction between tokens."""

    Config = SumConfig

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The first stream plus the adapted others."""
        return first + summed(others)


def summed(streams: tuple[Tensor, ...]) -> Tensor:
    """The sum of one or more streams of one shape."""
    total = streams[0]
    for stream in streams[1:]:
        total = total + stream
    return total
