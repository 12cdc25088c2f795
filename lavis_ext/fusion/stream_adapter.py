"""Two streams of different width and length to one width and one sequence."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.fusion.base import Stream


def resize_grid(tokens: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Tokens [B, h*w, C] of a grid ``source`` to [B, H*W, C] of ``target``, bilinear.

    Shrinking is antialiased, so that every source token counts. Raises ValueError if the number of
    tokens is not that of ``source``.
    """
    if tokens.shape[1] != source[0] * source[1]:
        raise ValueError(f"{tokens.shape[1]} tokens are no grid of {source[0]}x{source[1]}")
    if source == target:
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, source)
    shrinks = target[0] < source[0] or target[1] < source[1]
    resized = F.interpolate(
        image, size=target, mode="bilinear", align_corners=False, antialias=shrinks
    )
    return resized.flatten(2).transpose(1, 2)


class StreamAdapter(nn.Module):
    """Brings the streams that a fusion reads to [B, 1+N, d_model], token beside token.

    The segmentation stream is resized to the grid stream's rows and columns, projected, normalised,
    and given a learned partner for BLIP's class token. The grid stream is projected only if its
    width differs. There are parameters for the streams in ``streams`` alone: DDP stops at any
    that get no gradient.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        d_model: int,
        grid_width: int,
        grid_size: tuple[int, int],
        segmentation_width: int,
    ) -> None:
        super().__init__()
        self.streams, self.grid_size = tuple(streams), grid_size
        if "grid" in streams:
            self.grid_projection = (
                nn.Identity() if grid_width == d_model else nn.Linear(grid_width, d_model)
            )
        if "segmentation" in streams:
            self.segmentation_projection = nn.Linear(segmentation_width, d_model)
            self.segmentation_norm = nn.LayerNorm(d_model)
            self.class_partner = nn.Parameter(torch.empty(1, 1, d_model))
            nn.init.trunc_normal_(self.class_partner, std=0.02)

    def forward(
        self,
        grid_tokens: Tensor,
        segmentation_tokens: Tensor | None,
        segmentation_grid: tuple[int, int] | None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Grid tokens [B, 1+N, Dg] and segmentation tokens [B, h*w, Ds] to [B, 1+N, d_model] each.

        ``grid`` is the grid stream's (rows, columns) where it is pooled. A stream that is not read
        comes back as None. Raises UserError if N is not the grid's, and if the segmentation stream
        is read and absent.
        """
        rows, columns = self.grid_size if grid is None else grid
        if grid_tokens.shape[1] != 1 + rows * columns:
            raise UserError(
                f"The grid stream has {grid_tokens.shape[1]} tokens; a class token and a grid of "
                f"{rows}x{columns} are {1 + rows * columns}. Features stored at another image size "
                "have to be made again."
            )
        projected = self.grid_projection(grid_tokens) if "grid" in self.streams else None
        if "segmentation" not in self.streams:
            return projected, None
        if segmentation_tokens is None or segmentation_grid is None:
            raise UserError("This fusion reads the segmentation stream, and none was given to it.")
        resized = resize_grid(segmentation_tokens, segmentation_grid, (rows, columns))
        patches = self.segmentation_norm(self.segmentation_projection(resized))
        partner = self.class_partner.to(patches.dtype).expand(len(patches), -1, -1)
        return projected, torch.cat((partner, patches), dim=1)
