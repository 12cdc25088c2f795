"""The few places that a heat map means, as point prompts for EfficientSAM.

Rather fewer points than wrong ones: a point on the wrong object costs a whole mask, a missing one
leaves the heat map as it was.

Q questions, N = h * w patches row by row, P points of a question.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.cluster.vq import kmeans, vq
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.encoders.efficient_sam.prompt_encoder import NONE, POINT

TOUCHING = np.ones((3, 3))
"""Patches that touch at a side or corner belong to one region."""

EQUALLY_HOT = 1e-4
"""Relative difference below which two positions count as equally hot; rounding stays below it."""


@dataclass
class PointsConfig:
    """How points are found in a heat map."""

    num_points: int = option(3, "most points of a question", at_least=1)
    smoothing: float = option(
        1.0, "standard deviation of the Gaussian that smooths the heat map, in patches", at_least=0
    )
    candidate_share: float = option(
        0.5,
        "patches with at least this share of the smoothed map's maximum are candidates",
        above=0,
        at_most=1,
    )
    weak_share: float = option(
        0.2,
        "regions and clusters with less than this share of the strongest one's heat are dropped",
        at_least=0,
        at_most=1,
    )


class PointPrompts(NamedTuple):
    """What EfficientSAM's prompt encoder takes. P is ``num_points``, whatever was found."""

    points: Tensor
    """float32 [Q, P, 2], (x, y) in pixels; padding is (-1, -1)."""
    labels: Tensor
    """int64 [Q, P], 1 for a point and -1 for padding, which comes last. Never a score."""


def find_points(
    heat: np.ndarray | Tensor, grid: tuple[int, int], config: PointsConfig
) -> np.ndarray:
    """Points (row, column) of one heat map, int64 [P, 2], the strongest cluster's first.

    1. The map is smoothed. Positions with at least ``candidate_share`` of its maximum are
       candidates; those that touch make up a region. Regions with less than ``weak_share`` of the
       strongest one's heat are left out, as specks would draw clusters away.
    2. Candidates are clustered by k-means, with as many clusters as there are regions, at most
       ``num_points``: one blob, however wide, is one cluster. The first centres are the hottest
       positions of the regions with most heat, so that nothing is left to chance.
    3. Of each cluster the hottest position of the smoothed map is a point: one hot patch among cold
       ones is often an artefact of attention. Among equally hot ones it is the most central.
    4. A cluster with less than ``weak_share`` of the strongest one's heat gives none, and a region
       gives one at most, should k-means have divided it.

    A map without heat gives no points, nor does one where all positions are candidates, as it
    points nowhere.

    Args:
        heat: float [N] or [h, w].
        grid: (h, w).
        config: how points are found.

    Raises UserError for heat that is not finite.
    """
    raw = torch.as_tensor(heat).detach().cpu().double().reshape(grid).numpy()
    if not np.isfinite(raw).all():
        raise UserError(
            "A heat map in which points are to be found has values that are not finite. Check the "
            "weights of the fusion and of BLIP, or run in float32."
        )
    smooth = ndimage.gaussian_filter(raw, config.smoothing)
    is_candidate = smooth >= config.candidate_share * smooth.max()
    if smooth.max() <= 0 or is_candidate.all():
        return np.empty((0, 2), dtype=np.int64)

    regions, count = ndimage.label(is_candidate, TOUCHING)
    numbers = np.arange(1, count + 1)
    region_heat = ndimage.sum_labels(smooth, regions, numbers)
    by_heat = numbers[np.argsort(-region_heat, kind="stable")]
    kept = by_heat[: np.sum(region_heat >= config.weak_share * region_heat.max())]
    is_candidate = np.isin(regions, kept)
    candidates, heat_of = np.argwhere(is_candidate), smooth[is_candidate]

    first = ndimage.maximum_position(smooth, regions, kept[: config.num_points])
    positions = candidates.astype(float)
    centres, _ = kmeans(positions, np.array(first, dtype=float))
    cluster_of, _ = vq(positions, centres)
    strength = np.bincount(cluster_of, weights=heat_of)
    points: dict[int, np.ndarray] = {}  # by region
    for cluster in np.argsort(-strength, kind="stable"):
        if strength[cluster] < config.weak_share * strength.max():
            break
        members = cluster_of == cluster
        point = _hottest(candidates[members], heat_of[members])
        points.setdefault(int(regions[tuple(point)]), point)
    return np.stack(list(points.values()))


def to_pixels(points: np.ndarray, grid: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """Centres of patches, float64 (x, y) [P, 2] in pixels, for (row, column) [P, 2].

    As EfficientSAM's prompt encoder counts, (0, 0) is the middle of the first pixel: the centre of
    the first patch of 16 pixels is 7.5. ``image_size`` is the height and width in pixels of the
    image that ``grid``, (h, w), divides.
    """
    pixels = (points + 0.5) * np.divide(image_size, grid) - 0.5
    return pixels[:, ::-1]


def point_prompts(
    heat: Tensor, grid: tuple[int, int], image_size: tuple[int, int], config: PointsConfig
) -> PointPrompts:
    """Point prompts of heat maps [Q, N], on their device. See ``find_points`` and ``to_pixels``.

    A question without points has padding only. Raises UserError for heat that is not finite.
    """
    shape = (len(heat), config.num_points)
    points = np.full((*shape, 2), -1.0)
    labels = np.full(shape, NONE)
    for question, question_heat in enumerate(heat.detach().cpu()):
        found = find_points(question_heat, grid, config)
        points[question, : len(found)] = to_pixels(found, grid, image_size)
        labels[question, : len(found)] = POINT
    return PointPrompts(
        torch.tensor(points, dtype=torch.float32, device=heat.device),
        torch.tensor(labels, dtype=torch.int64, device=heat.device),
    )


def _hottest(positions: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The hottest of ``positions`` [C, 2]; of equally hot ones the nearest to their middle."""
    equal = positions[heat >= heat.max() * (1 - EQUALLY_HOT)]
    from_middle = np.linalg.norm(equal - equal.mean(axis=0), axis=1)
    return equal[from_middle.argmin()]
