"""Close-ups of a scene: a square part of the picture, with what its scene graph says of it."""

import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lavis_ext.datasets.gqa.scene_graphs import SceneGraph

SEEN = 0.3
"""Least share of an object's pixels inside a close-up that names it."""


@dataclass(frozen=True, slots=True)
class CloseUp:
    """A part of a picture.

    Attributes:
        box: left, top, right, bottom in the picture's pixels.
        graph: objects seen, relations among them, and boxes in the close-up's pixels.
        masks: bool [objects, side, side].
    """

    box: tuple[int, int, int, int]
    graph: SceneGraph
    masks: npt.NDArray[np.bool_]


def draw_close_up(
    graph: SceneGraph, masks: npt.NDArray[np.bool_], zoom: float, rng: random.Random
) -> CloseUp:
    """Draw a close-up with one of the objects, 1 to ``zoom`` times as large (log-uniform).

    ``masks`` are those of the objects, bool [objects, H, W], each with a pixel.
    """
    height, width = masks.shape[1:]
    side = round(min(height, width) * zoom ** -rng.random())
    x, y, w, h = rng.choice(graph.objects).box
    left = _start(x + w // 2, side, width, rng)
    top = _start(y + h // 2, side, height, rng)
    cut = masks[:, top : top + side, left : left + side]
    seen = cut.sum(axis=(1, 2)) >= SEEN * masks.sum(axis=(1, 2))
    if not seen.any():  # a large object, of which little fits
        return CloseUp((0, 0, width, height), graph, masks)
    kept = [item for item, is_seen in zip(graph.objects, seen, strict=True) if is_seen]
    names = {item.id for item in kept}
    inside = [
        replace(
            item,
            box=_box(mask),
            relations=tuple(each for each in item.relations if each[1] in names),
        )
        for item, mask in zip(kept, cut[seen], strict=True)
    ]
    part = replace(graph, width=side, height=side, objects=tuple(inside))
    return CloseUp((left, top, left + side, top + side), part, cut[seen])


def _start(center: int, side: int, whole: int, rng: random.Random) -> int:
    """First pixel of a stretch of ``side`` with the pixel ``center`` in it, in its inner half."""
    start = center - rng.randint(side // 4, side - side // 4)
    return min(max(start, 0), whole - side)


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
