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

A :class:`FusionEncoder` gets the other streams at the places of the first. A :class:`GridFusion`
gets them on their own grids, in their own widths.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from lavis_ext.checkpoints.foreign import ForeignNames
from lavis_ext.checkpoints.reading import OWN_NAMES
from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.stream_adapter import StreamLayout

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


def check_heads(heads: int, d_model: int, where: str = "model.fusion", *, each: int = 1) -> None:
    """Raise UserError unless ``heads`` divides ``d_model`` into multiples of ``each`` channels."""
    if d_model % (heads * each):
        needed = f", into multiples of {each} channels" if each > 1 else ""
        raise UserError(
            f"{where}.heads is {heads}; it must divide the fusion's width {d_model} "
            f"({where}.d_model, where null the first stream's){needed}."
        )


class Fusion(nn.Module, ABC):
    """What :class:`FusionEncoder` and :class:`GridFusion` share.

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
        super().__init__()
        self.d_model = d_model


class FusionEncoder(Fusion):
    """Base of fusions at the places of the first stream.

    The other streams are resized to its grid and projected to its width beforehand. Register a
    subclass with ``registry.register_fusion(name)``.
    """

    def __init__(self, config: FusionConfig, d_model: int) -> None:
        """``config`` is an instance of ``Config``; ``d_model`` is the width of all streams."""
        super().__init__(config, d_model)

    @abstractmethod
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Fuse streams [B, P+N, d_model], in the model's order, to tokens of the same shape.

        All have the layout of the first: its P prefix tokens, such as a class token, then patches.
        """


class GridFusion(Fusion):
    """Base of fusions that read the other streams at their own resolution.

    It reads all streams. Register a subclass with ``registry.register_fusion(name)``.
    """

    reads: ClassVar[Reads] = "all"

    def __init__(self, config: FusionConfig, d_model: int, layouts: Sequence[StreamLayout]) -> None:
        """``config`` is an instance of ``Config``; ``d_model`` is the width of the first stream.

        ``layouts`` are those of the tokens that ``forward`` gets. With pooled features
        (``run.features.pooling``) all grids of a batch are smaller by the same factor.
        """
        super().__init__(config, d_model)

    @abstractmethod
    def forward(self, first: Tokens, *others: Tokens) -> Tensor:
        """Fuse streams, in the model's order, to tokens like the first's, [B, P+N, d_model].

        The first is [B, P+N, d_model]. The others have their encoders' widths and grids,
        [B, M, C] without prefix tokens.
        """
