"""Interface of fusions, which turn several streams of tokens into one.

A new fusion is a subclass with a config and a ``forward``::

    @dataclass
    class WeightedSumConfig(FusionConfig):
        start: float = option(0.5, "initial weight of the other streams")

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

from lavis_ext.checkpoints.foreign import ForeignNames
from lavis_ext.checkpoints.reading import OWN_NAMES
from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.config.schema import option

Reads = Literal["all", "first", "others"]
"""Streams read by a fusion: all, only the first, or all but the first."""


@dataclass
class FusionConfig:
    """Common options of fusions."""

    name: str = option("difnet", "the fusion, by its registered name")
    gate: bool = option(
        True,
        "add the fusion to the first stream through a gate that starts at 0; false returns the "
        "fusion's output itself",
    )
    d_model: int | None = option(
        None, "width of the fusion; null is the first stream's width", at_least=1
    )
    weights: str | None = option(
        None,
        "checkpoint that the fusion without adapter and gate starts from, a hub name, local path "
        "or URL; null starts from random weights",
        files=WEIGHT_FILES,
    )


class FusionEncoder(nn.Module, ABC):
    """Base of all fusions. Register a subclass with ``registry.register_fusion(name)``.

    Class attributes:
        Config: dataclass of its options, a subclass of FusionConfig.
        reads: streams that ``forward`` reads; the others are None, without any parameters.
        gated: whether ``gate: true`` is allowed, meaning that the output can be added to the first
            stream.
        foreign_names: other programs' names of its parameters.
    """

    Config: ClassVar[type[FusionConfig]] = FusionConfig
    reads: ClassVar[Reads] = "all"
    gated: ClassVar[bool] = True
    foreign_names: ClassVar[ForeignNames] = OWN_NAMES

    def __init__(self, config: FusionConfig, d_model: int) -> None:
        """``config`` is an instance of ``Config``; ``d_model`` is the width of all streams."""
        super().__init__()
        self.d_model = d_model

    @abstractmethod
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Fuse streams [B, P+N, d_model], in the model's order, to tokens of the same shape.

        All have the layout of the first: its P prefix tokens, such as a class token, then patches.
        """
