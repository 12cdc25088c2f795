"""How well heat maps point at objects: the hottest position, and the overlap with the mask."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

HOT = 0.5
"""Share of a map's maximum above which a position counts as hot."""


def points_into(heat: Array, mask: Mask) -> bool:
    """Whether the hottest position lies in the object (Zhang et al., 2016, the pointing game).

    Args:
        heat: [h, w], a value for each cell of a grid over the image. A map without any heat
            points nowhere.
        mask: [H, W], the object in pixels.
    """
    if not heat.max() > 0:
        return False
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return bool(_at_centres(mask, heat.shape)[row, column])


def chance_of_pointing(mask: Mask, grid: tuple[int, int]) -> float:
    """The share of a grid's positions (h, w) that lie in the object."""
    return float(_at_centres(mask, grid).mean())


def hot_iou(heat: Array, mask: Mask) -> float:
    """Intersection over union of the positions above ``HOT`` times the maximum with the object.

    ``heat`` [h, w] is compared in pixels: each of its cells covers its part of ``mask`` [H, W].
    """
    height, width = mask.shape
    rows = np.arange(height) * heat.shape[0] // height
    columns = np.arange(width) * heat.shape[1] // width
    hot = (heat > HOT * heat.max())[np.ix_(rows, columns)]
    union = (hot | mask).sum()
    return float((hot & mask).sum() / union) if union else 0.0


def _at_centres(mask: Mask, grid: tuple[int, ...]) -> Mask:
    """The mask [H, W] at the centres of a grid's cells, [h, w]."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * side / cells).astype(int)
        for cells, side in zip(grid, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
