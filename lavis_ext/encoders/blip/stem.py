"""Convolutions in place of the patch embedding, for image encoders trained from scratch."""

import math
from itertools import pairwise

from torch import Tensor, nn

GROUPS = 8
"""Of the normalization; widths are multiples of it."""


class ConvolutionalStem(nn.Sequential):
    """Pixels [I, 3, S, S] to patches [I, width, S/P, S/P], P a power of two.

    A convolution of 3x3 with stride 2 for each halving, then one of 1x1: transformers with it learn
    faster and from less data (Xiao et al., "Early Convolutions Help Transformers See Better",
    NeurIPS 2021, section 4). Normalization is by groups of channels, as BatchNorm would depend on
    the batch.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        halvings = int(math.log2(patch_size))
        widths = [3, *(max(width >> (halvings - 1 - step), 4 * GROUPS) for step in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(GROUPS, after),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.Conv2d(widths[-1], width, 1))

    @property
    def weight(self) -> Tensor:
        """Weight of the last layer: transformers reads the dtype of the patch embedding's."""
        last = self[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight
