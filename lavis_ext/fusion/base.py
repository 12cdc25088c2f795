"""The interface of a fusion: streams of tokens in, one out.

A fusion of one's own is a subclass with a config and a ``forward``::

    @dataclass
    class WeightedSumConfig(FusionConfig):
        start: float = option(0.5, "weight of the other streams at the start")

    @registry.register_fusion("weighted_sum")
    class WeightedSum(FusionEncoder):
        Config = WeightedSumConfig

        def __init__(self, config, d_model):
            super().__init__(config, d_model)
            self.weight = nn.Parameter(torch.tensor(config.start))

        def forward(self, first, *others):
            return first + self.weight * sum(others)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from lavis_ext.config.schema import option

Reads = Literal["all", "first", "others"]
"""Which of a model's streams a fusion reads: all, the first alone, or all but the first."""


@dataclass
class FusionConfig:
    """The options that every fusion has."""

    name: str = option("difnet", "the fusion, by its registered name")
    gate: bool = option(
        True,
        "add the fusion to the first stream through a gate that starts at 0; false passes on the "
        "fusion's output itself",
    )
    d_model: int | None = option(
        None, "width of the fusion; null takes the first stream's", at_least=1
    )


class FusionEncoder(nn.Module, ABC):
    """Base of all fusions, registered with ``registry.register_fusion(name)``.

    ``reads`` says which streams ``forward`` reads; the others arrive as None, and nothing is built
    or trained for them. ``gated`` says whether ``gate: true`` makes sense, which it does for
    whatever is worth adding to the first stream. ``Config`` is the dataclass of the fusion's
    options.
    """

    Config: ClassVar[type[FusionConfig]] = FusionConfig
    reads: ClassVar[Reads] = "all"
    gated: ClassVar[bool] = True

    def __init__(self, config: FusionConfig, d_model: int) -> None:
        """``config`` is an instance of ``Config``; ``d_model`` is the width of all streams."""
        super().__init__()
        self.d_model = d_model

    @abstractmethod
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Streams [B, P+N, d_model] in the model's order to fused tokens of the same shape.

        All have the layout of the first: its P prefix tokens, such as a class token, then patches.
        """
