"""Pointing metrics of heat maps: the pointing game and IoU with object masks."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

HOT = 0.5
"""Share of a map's maximum above which a position is hot."""


def points_into(heat: Array, mask: Mask) -> bool:
    """Whether the hottest position is in the object (the pointing game, Zhang et al., 2016).

    Args:
        heat: [h, w], a value per cell of a grid over the image. A map without heat points nowhere.
        mask: [H, W], the object in pixels.
    """
    if not heat.max() > 0:
        return False
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return bool(_at_centers(mask, heat.shape)[row, column])


def chance_of_pointing(mask: Mask, grid: tuple[int, int]) -> float:
    """Share of a grid's positions (h, w) in the object."""
    return float(_at_centers(mask, grid).mean())


def hot_iou(heat: Array, mask: Mask) -> float:
    """IoU of the object and the positions above ``HOT`` times the maximum.

    ``heat`` [h, w] is compared in pixels: each of its cells covers its part of ``mask`` [H, W].
    """
    height, width = mask.shape
    rows = np.arange(height) * heat.shape[0] // height
    columns = np.arange(width) * heat.shape[1] // width
    hot = (heat > HOT * heat.max())[np.ix_(rows, columns)]
    union = (hot | mask).sum()
    return float((hot & mask).sum() / union) if union else 0.0


def _at_centers(mask: Mask, grid: tuple[int, ...]) -> Mask:
    """The mask [H, W] at the centers of a grid's cells, [h, w]."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * side / cells).astype(int)
        for cells, side in zip(grid, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
