"""Adapters of streams to what a fusion reads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.encoders.base import Encoder, Tokens

Size = tuple[int, int]
"""Rows and columns of patches."""


class StreamLayout(NamedTuple):
    """Shape of a stream's tokens."""

    width: int
    """Channels."""
    grid: Size
    """Rows and columns of patches."""
    prefix: int
    """Tokens before the patches, such as a class token."""

    @classmethod
    def of(cls, encoder: Encoder) -> "StreamLayout":
        """Layout of an encoder's tokens."""
        return cls(encoder.width, encoder.grid, encoder.prefix)


def resize_grid(tokens: Tensor, source: Size, target: Size) -> Tensor:
    """Tokens [B, h*w, C] of a grid ``source`` to [B, H*W, C] of ``target``, bilinear.

    Downscaling is antialiased, so every source token contributes. Raises ValueError if the number
    of tokens doesn't match ``source``.
    """
    if tokens.shape[1] != source[0] * source[1]:
        raise ValueError(f"{tokens.shape[1]} tokens are not a grid of {source[0]}x{source[1]}")
    if source == target:
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, source)
    if image.device.type == "cpu" and image.dtype == torch.bfloat16:
        image = image.float()  # torch has no antialiased kernel for bfloat16 there
    shrinks = target[0] < source[0] or target[1] < source[1]
    resized = F.interpolate(
        image, size=target, mode="bilinear", align_corners=False, antialias=shrinks
    )
    return resized.flatten(2).transpose(1, 2).to(tokens.dtype)


def window_of(first: Size, other: Size) -> Size:
    """(r, s): patches of the grid ``other`` in one of ``first``, rounded up."""
    return -(-other[0] // first[0]), -(-other[1] // first[1])


def in_windows(patches: Tensor, source: Size, grid: Size, window: Size) -> Tensor:
    """Patches [B, M, C] of a grid ``source`` to [B, h*w, r*s, C], those in each of h x w windows.

    They are resized to a whole number of patches in each window.
    """
    (h, w), (r, s) = grid, window
    resized = resize_grid(patches, source, (h * r, w * s))
    windows = resized.unflatten(1, (h, r, w, s)).transpose(2, 3)
    return windows.flatten(3, 4).flatten(1, 2)


def patches_at(first: Tokens, other: Tokens) -> Tensor:
    """Patches of ``other`` [B, M, C] at the places of ``first``, [B, P+N, C].

    They are resized to its grid; its P prefix tokens get their mean.
    """
    return with_prefix(first, resize_grid(other.values, other.grid, first.grid), other.values)


def with_prefix(first: Tokens, patches: Tensor, of: Tensor) -> Tensor:
    """Patches [B, N, C] after as many tokens as ``first`` has, the mean of ``of`` [B, M, C]."""
    mean = of.mean(dim=1, keepdim=True).expand(-1, first.prefix, -1)
    return torch.cat((mean, patches), dim=1)


class StreamAdapter(nn.Module):
    """Aligns the streams that a fusion reads to [B, P+N, d_model].

    The first stream keeps its layout, and is projected only if its width differs. The patches of
    each other stream are resized to the rows and columns of the first, projected and normalized.
    Their own prefix tokens are replaced by learned ones, as many as the first stream has. Streams
    that aren't in ``reads`` have no parameters, because DDP fails on those without a gradient.

    Args:
        layouts: layout of each stream, in order.
        reads: names of the streams that the fusion reads.
        d_model: width of the output.
    """

    def __init__(
        self, layouts: Mapping[str, StreamLayout], reads: Sequence[str], d_model: int
    ) -> None:
        super().__init__()
        self.names, self.reads = list(layouts), frozenset(reads)
        self.first = self.names[0]
        first = layouts[self.first]
        others = [name for name in self.names[1:] if name in self.reads]
        self.partners = nn.ParameterDict()
        if first.prefix:
            for name in others:
                partner = nn.Parameter(torch.empty(1, first.prefix, d_model))
                self.partners[name] = nn.init.trunc_normal_(partner, std=0.02)
        if self.first in self.reads:
            self.first_projection = (
                nn.Identity() if first.width == d_model else nn.Linear(first.width, d_model)
            )
        self.projections = nn.ModuleDict(
            {name: nn.Linear(layouts[name].width, d_model) for name in others}
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(d_model) for name in others})

    def forward(self, streams: Mapping[str, Tokens]) -> list[Tensor | None]:
        """Tokens by stream to [B, P+N, d_model] each, in order; None for streams that aren't read.

        Raises UserError if tokens don't match their grid, or a stream that is read is missing.
        """
        for name in self.names:
            if name in streams or name in self.reads or name == self.first:
                _check_layout(name, streams)
        first = streams[self.first]
        adapted: list[Tensor | None] = [
            self.first_projection(first.values) if self.first in self.reads else None
        ]
        for name in self.names[1:]:
            adapted.append(
                self._adapted(name, streams[name], first.grid) if name in self.reads else None
            )
        return adapted

    def _adapted(self, name: str, tokens: Tokens, grid: tuple[int, int]) -> Tensor:
        resized = resize_grid(tokens.values[:, tokens.prefix :], tokens.grid, grid)
        patches: Tensor = self.norms[name](self.projections[name](resized))
        if name not in self.partners:
            return patches
        partner = self.partners[name].to(patches.dtype).expand(len(patches), -1, -1)
        return torch.cat((partner, patches), dim=1)


class GridAdapter(nn.Module):
    """Hands the streams to a ``GridFusion``: all but the first on their own grids, in their widths.

    The first is projected to ``d_model`` if its width differs. The others lose their prefix tokens.
    """

    def __init__(self, layouts: Mapping[str, StreamLayout], d_model: int) -> None:
        super().__init__()
        self.names = list(layouts)
        width = layouts[self.names[0]].width
        self.first_projection = nn.Identity() if width == d_model else nn.Linear(width, d_model)

    def forward(self, streams: Mapping[str, Tokens]) -> list[Tokens]:
        """Tokens by stream to tokens in order.

        Raises UserError if tokens don't match their grid, or a stream is missing.
        """
        for name in self.names:
            _check_layout(name, streams)
        first, *others = (streams[name] for name in self.names)
        return [
            first._replace(values=self.first_projection(first.values)),
            *(Tokens(other.values[:, other.prefix :], other.grid, 0) for other in others),
        ]


def _check_layout(name: str, streams: Mapping[str, Tokens]) -> None:
    if name not in streams:
        raise UserError(f"This fusion reads the stream '{name}', which is missing.")
    tokens = streams[name]
    rows, columns = tokens.grid
    expected = tokens.prefix + rows * columns
    if tokens.values.shape[1] != expected:
        raise UserError(
            f"The stream '{name}' has {tokens.values.shape[1]} tokens, but {tokens.prefix} before "
            f"the patches and a grid of {rows}x{columns} make {expected}. Extract features of "
            "another image size again."
        )
