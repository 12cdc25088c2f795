"""Grounding: the share of attention on the objects named in a question."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from lavis_ext.datasets.gqa.scene_graphs import SceneGraph
from lavis_ext.evaluation.gqa.questions import GqaQuestion

Attention = npt.NDArray[np.float64]
"""Attention of a model: either a spatial map [w, h] or regions [R, 5].

A map's first index is the column, from the left, and its second the row, from the top, as in GQA's
evaluation script, so row-major maps must be transposed. A region is x0, y0, x1, y1, each from 0
to 1, and its attention.
"""


def map_cells(attention: Attention) -> Attention:
    """Convert a spatial map [w, h] to regions [w * h, 5], one per cell."""
    return np.column_stack([_grid(*attention.shape), attention.ravel()])


def grounding_score(objects: Attention, regions: Attention) -> float:
    """Attention to each region, times the share of it inside each object, summed over both.

    Hudson and Manning (2019), section 4.4. As in GQA's evaluation script, repeated objects count
    repeatedly and attention isn't normalized, so the score can exceed 1. The script intends to
    count the whole image as an object if the program has "scene", but searches the keys of a
    program's operations, where it never occurs; published values lack it, and so do these.

    The script's path for regions (its option ``objectFeatures``) fails, since it unpacks a list
    before creating it. Here the formula of its spatial path is applied to both.

    Args:
        objects: boxes [K, 4], x0, y0, x1, y1 from 0 to 1.
        regions: [R, 5] with positive areas (``map_cells`` of a spatial map).
    """
    low = np.maximum(objects[:, None, :2], regions[None, :, :2])
    high = np.minimum(objects[:, None, 2:], regions[None, :, 2:4])
    inside = (high - low).clip(min=0).prod(axis=2).sum(axis=0)  # [R]
    areas = (regions[:, 2:4] - regions[:, :2]).prod(axis=1)
    return float(inside / areas @ regions[:, 4])


def heat_grounding(objects: Attention, heat: Attention) -> float:
    """``grounding_score`` of a row-major heat map [h, w], normalized to a sum of 1.

    0 for a map without heat.
    """
    total = heat.sum()
    return grounding_score(objects, map_cells(heat.T / total)) if total > 0 else 0.0


def object_boxes(graph: SceneGraph) -> dict[str, tuple[float, float, float, float]]:
    """Box of each object by id: x0, y0, x1, y1, as shares of the image's sides."""
    boxes = {}
    for item in graph.objects:
        x, y, width, height = item.box
        boxes[item.id] = (
            x / graph.width,
            y / graph.height,
            (x + width) / graph.width,
            (y + height) / graph.height,
        )
    return boxes


def grounding_scores(
    questions: Sequence[GqaQuestion],
    graphs: Mapping[str, SceneGraph],
    attentions: Iterable[tuple[str, Attention]],
) -> dict[str, float]:
    """Score of each question with an attention, by id.

    Args:
        questions: the questions, each with ``objects``.
        graphs: scene graphs by image id.
        attentions: id and regions [R, 5] of questions, iterated once.

    Raises KeyError for an image or an object that isn't in the scene graphs.
    """
    by_id = {question.id: question for question in questions}
    boxes = cache(lambda image_id: object_boxes(graphs[image_id]))
    scores = {}
    for name, regions in attentions:
        question = by_id.get(name)
        if question is not None:
            known = boxes(question.image_id)
            objects = np.array([known[item] for item in question.objects or ()]).reshape(-1, 4)
            scores[name] = grounding_score(objects, regions)
    return scores


@cache
def _grid(columns: int, rows: int) -> Attention:
    x, y = np.arange(columns + 1) / columns, np.arange(rows + 1) / rows
    left, top = np.meshgrid(x[:-1], y[:-1], indexing="ij")
    right, bottom = np.meshgrid(x[1:], y[1:], indexing="ij")
    return np.stack([left, top, right, bottom], axis=2).reshape(-1, 4)
