"""Baselines for DIFNet: the first stream alone, the others alone, and their sum."""

from dataclasses import dataclass

from torch import Tensor

from lavis_ext.config.schema import option
from lavis_ext.fusion.base import FusionConfig, FusionEncoder
from lavis_ext.registry import registry


@dataclass
class FirstOnlyConfig(FusionConfig):
    """Options of ``first_only``, all fixed."""

    name: str = option("first_only", "the fusion, by its registered name")
    gate: bool = option(False, "there is nothing to gate", choices=(False,))
    d_model: int | None = option(None, "the first stream's width", choices=(None,))


@registry.register_fusion("grid_only")  # its name while the first stream was always called grid
@registry.register_fusion("first_only")
class FirstOnly(FusionEncoder):
    """The first stream alone, without parameters: the score to beat."""

    Config = FirstOnlyConfig
    reads = "first"
    gated = False

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """``first`` unchanged."""
        return first


@dataclass
class OthersOnlyConfig(FusionConfig):
    """Options of ``others_only``."""

    name: str = option("others_only", "the fusion, by its registered name")
    gate: bool = option(False, "a gate would add the first stream", choices=(False,))


@registry.register_fusion("segmentation_only")  # its name while there was one other, called so
@registry.register_fusion("others_only")
class OthersOnly(FusionEncoder):
    """The sum of all streams but the first, in its width and layout."""

    Config = OthersOnlyConfig
    reads = "others"
    gated = False

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The sum of ``others``."""
        return summed(others)


@dataclass
class SumConfig(FusionConfig):
    """Options of ``sum``."""

    name: str = option("sum", "the fusion, by its registered name")


@registry.register_fusion("sum")
class Sum(FusionEncoder):
    """The sum of all streams, without interaction between tokens."""

    Config = SumConfig

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """``first`` plus ``others``."""
        return first + summed(others)


def summed(streams: tuple[Tensor, ...]) -> Tensor:
    """The sum of one or more streams of the same shape."""
    total = streams[0]
    for stream in streams[1:]:
        total = total + stream
    return total
