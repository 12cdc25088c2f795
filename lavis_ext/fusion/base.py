"""The interface of a fusion: two streams of tokens in, one out.

A fusion of one's own is a subclass with a config and a ``forward``::

    @dataclass
    class WeightedSumConfig(FusionConfig):
        start: float = option(0.5, "weight of the segmentation stream at the start")

    @registry.register_fusion("weighted_sum")
    class WeightedSum(FusionEncoder):
        Config = WeightedSumConfig

        def __init__(self, config, d_model):
            super().__init__(config, d_model)
            self.weight = nn.Parameter(torch.tensor(config.start))

        def forward(self, grid_tokens, segmentation_tokens):
            return grid_tokens + self.weight * segmentation_tokens
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from lavis_ext.config.schema import option

Stream = Literal["grid", "segmentation"]


@dataclass
class FusionConfig:
    """The options that every fusion has. A fusion's own config derives from it."""

    name: str = option("difnet", "the fusion, by its registered name")
    gate: bool = option(
        True,
        "add the fusion to BLIP's tokens through a gate that starts at 0; false passes on the "
        "fusion's output itself",
    )
    d_model: int | None = option(
        None, "width of the fusion; null takes the grid stream's", at_least=1
    )


class FusionEncoder(nn.Module, ABC):
    """Base of all fusions, registered with ``registry.register_fusion(name)``.

    ``streams`` names the streams that ``forward`` reads; one that it does not name arrives as None,
    and nothing is built or trained for it. ``gated`` says whether ``gate: true`` makes sense, which
    it does for whatever is worth adding to the grid tokens. ``Config`` is the dataclass of the
    fusion's options.
    """

    Config: ClassVar[type[FusionConfig]] = FusionConfig
    streams: ClassVar[tuple[Stream, ...]] = ("grid", "segmentation")
    gated: ClassVar[bool] = True

    def __init__(self, config: FusionConfig, d_model: int) -> None:
        """``config`` is an instance of ``Config``; ``d_model`` is the width of both streams."""
        super().__init__()
        self.d_model = d_model

    @abstractmethod
    def forward(self, grid_tokens: Tensor, segmentation_tokens: Tensor) -> Tensor:
        """Both streams [B, 1+N, d_model], class token first, to fused tokens of the same shape."""
