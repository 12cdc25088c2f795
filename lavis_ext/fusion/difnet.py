"""DIFNet's encoder: Dual Information Flow Network (Wu et al., CVPR 2022, section 3).

Two streams pass the same attention and feed-forward weights, each with its own LayerNorms. In the
authors' code (models/difnet/encoders.py), and in the parameter names here, the second stream's end
in 1. With more than two streams, the sum of all but the first is the second. Three details of that
code:

- Residual and LayerNorm are applied twice around attention, in ``mhatt`` and after it.
- ``mhatt`` doesn't know the stream, so both share its norm, and its ``layer_norm1`` is unused.
- Tokens whose channels sum to the padding index are masked.

The first two are reproduced, as the parity tests require. The mask is left out, since patches of
whole images have no padding. LayerNorms that the authors create and never use are not created,
because DDP fails on parameters without a gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.fusion.base import FusionConfig, FusionEncoder, check_heads
from lavis_ext.fusion.baselines import summed
from lavis_ext.fusion.difnet_names import DIFNET_NAMES
from lavis_ext.registry import registry


@dataclass
class DifnetConfig(FusionConfig):
    """Options of ``difnet``, named as in the paper; its d_model is 512.

    The defaults are its own, but for ``attention_dropout``.
    """

    name: str = option("difnet", "the fusion, by its registered name")
    lf: int = option(
        1, "Lf: number of first layers that process each stream separately", at_least=1
    )
    t: int = option(2, "T: passes of a stream through each of these layers", at_least=1)
    n: int = option(3, "N: total number of layers; more than lf", at_least=2)
    heads: int = option(8, "attention heads; divides d_model", at_least=1)
    d_ff: int = option(2048, "inner width of the feed-forward part", at_least=1)
    dropout: float = option(
        0.1, "dropout on feed-forward and residual branches", at_least=0, at_most=0.9
    )
    attention_dropout: float = option(
        0.0,
        "dropout on attention probabilities; the authors use 0.1, which on the CPU costs the fused "
        "kernel",
        at_least=0,
        at_most=0.9,
    )
    recompute_activations: bool = option(
        False,
        "keep only each layer's input for the backward pass and recompute the rest: a tenth of the "
        "fusion's memory for a third more of its time",
    )

    def check_together(self, where: str) -> None:
        """Raise UserError unless ``lf`` is below ``n`` and the heads divide the width."""
        if self.lf >= self.n:
            raise UserError(
                f"{where}.lf is {self.lf} and {where}.n is {self.n}; the streams are summed at "
                "layer lf, so lf must be below n."
            )
        if self.d_model is not None:
            check_heads(self.heads, self.d_model, where)


def norm_streams(x: Tensor, norm: nn.Module, second_norm: nn.Module | None) -> Tensor:
    """Normalize each half of the batch by its own norm, or all of it without a second norm."""
    if second_norm is None:
        return norm(x)
    first, second = x.chunk(2)
    return torch.cat((norm(first), second_norm(second)))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017)."""

    def __init__(self, config: DifnetConfig, d_model: int) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.fc_q = nn.Linear(d_model, d_model)
        self.fc_k = nn.Linear(d_model, d_model)
        self.fc_v = nn.Linear(d_model, d_model)
        self.fc_o = nn.Linear(d_model, d_model)
        for linear in (self.fc_q, self.fc_k, self.fc_v, self.fc_o):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, d_model] to the same shape."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.fc_q, self.fc_k, self.fc_v)
        )
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )
        return self.fc_o(mixed.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Attention, residual, and a LayerNorm that streams share: the authors' ``mhatt``."""

    def __init__(self, config: DifnetConfig, d_model: int) -> None:
        super().__init__()
        self.attention = Attention(config, d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, d_model] to the same shape."""
        return self.layer_norm(x + self.dropout(self.attention(x)))


class FeedForwardBlock(nn.Module):
    """Feed-forward, residual, LayerNorm: the authors' ``pwff``."""

    def __init__(self, config: DifnetConfig, d_model: int, two_streams: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, config.d_ff)
        self.fc2 = nn.Linear(config.d_ff, d_model)
        self.inner_dropout = nn.Dropout(config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(d_model)
        self.layer_norm1 = nn.LayerNorm(d_model) if two_streams else None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, d_model] to the same shape."""
        out = self.fc2(self.inner_dropout(F.relu(self.fc1(x))))
        return norm_streams(x + self.dropout(out), self.layer_norm, self.layer_norm1)


class Layer(nn.Module):
    """One encoder layer. With ``two_streams``, below Lf, the batch is [first; second]."""

    def __init__(self, config: DifnetConfig, d_model: int, two_streams: bool) -> None:
        super().__init__()
        self.mhatt = AttentionBlock(config, d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.lnorm = nn.LayerNorm(d_model)
        self.lnorm1 = nn.LayerNorm(d_model) if two_streams else None
        self.pwff = FeedForwardBlock(config, d_model, two_streams)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, d_model] to the same shape."""
        attended = norm_streams(x + self.dropout(self.mhatt(x)), self.lnorm, self.lnorm1)
        return self.pwff(attended)


@registry.register_fusion("difnet")
class DifnetEncoder(FusionEncoder):
    """N layers, the first Lf of which process each stream separately, T times.

    At layer Lf the streams are summed; the output adds this sum. ``weights`` takes the authors'
    checkpoints, without the norms in them that are never read.
    """

    Config = DifnetConfig
    foreign_names = DIFNET_NAMES

    def __init__(self, config: DifnetConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        check_heads(config.heads, d_model)
        self.lf, self.repeats = config.lf, config.t
        self.recompute_activations = config.recompute_activations
        self.layers = nn.ModuleList(
            Layer(config, d_model, two_streams=index < config.lf) for index in range(config.n)
        )

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Streams [B, L, d_model] to fused tokens [B, L, d_model]."""
        # As one batch, since the weights are shared: half as many matrix products, twice as large.
        streams = torch.cat((first, summed(others)))
        for layer in self.layers[: self.lf]:
            for _ in range(self.repeats):
                streams = self._through(layer, streams)
        first, second = streams.chunk(2)
        both = first + second
        fused = both
        for layer in self.layers[self.lf :]:
            fused = self._through(layer, fused)
        return fused + both

    def _through(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.recompute_activations and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(layer, x, use_reentrant=False)
            return recomputed
        passed: Tensor = layer(x)
        return passed
