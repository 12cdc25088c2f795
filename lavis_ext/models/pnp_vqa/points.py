"""Peaks of a heat map, as point prompts for EfficientSAM.

Precision matters more than recall: a point on the wrong object adds a wrong mask, while a missing
one leaves the heat map unchanged.

Shapes: Q questions, N = h * w patches row by row, P points of a question.
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

EIGHT_CONNECTED = np.ones((3, 3))
"""Structuring element: patches with a common side or corner are connected."""

EQUAL_TOLERANCE = 1e-4
"""Largest relative difference of heat that counts as equal; above rounding errors."""


@dataclass
class PointsConfig:
    """Options of ``find_points``."""

    num_points: int = option(3, "Most points of a question.", at_least=1)
    smoothing: float = option(
        1.0, "Standard deviation of the Gaussian that smooths the heat map, in patches.", at_least=0
    )
    candidate_share: float = option(
        0.5,
        "Patches with at least this share of the smoothed map's maximum are candidates.",
        above=0,
        at_most=1,
    )
    weak_share: float = option(
        0.2,
        "Regions and clusters with less than this share of the strongest one's heat are dropped.",
        at_least=0,
        at_most=1,
    )


class PointPrompts(NamedTuple):
    """Input of EfficientSAM's prompt encoder, padded to P = ``num_points``."""

    points: Tensor
    """float32 [Q, P, 2], (x, y) in pixels; padding is (-1, -1)."""
    labels: Tensor
    """int64 [Q, P], 1 for a point and -1 for padding, which comes last."""


def find_points(
    heat: np.ndarray | Tensor, grid: tuple[int, int], config: PointsConfig
) -> np.ndarray:
    """Points (row, column) of one heat map, int64 [P, 2], that of the strongest cluster first.

    1. The map is smoothed. Positions with at least ``candidate_share`` of its maximum are
       candidates; connected ones form a region. Regions with less than ``weak_share`` of the
       strongest one's heat are dropped, since specks would shift clusters.
    2. Candidates are clustered by k-means, with as many clusters as there are regions, at most
       ``num_points``, so a wide blob is still one cluster. The initial centers are the hottest
       positions of the regions with most heat, which makes the result deterministic.
    3. The hottest position of each cluster in the smoothed map is a point, because a single hot
       patch is often an artifact of attention. Among equally hot ones it is the most central.
    4. Clusters with less than ``weak_share`` of the strongest one's heat give no point, and a
       region that k-means has divided gives only one.

    A map without heat gives no points, nor does a flat one, in which all positions are candidates.

    Args:
        heat: float [N] or [h, w], at least 0.
        grid: (h, w).
        config: options.

    Raises UserError for heat that isn't finite.
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

    regions, count = ndimage.label(is_candidate, EIGHT_CONNECTED)
    numbers = np.arange(1, count + 1)
    region_heat = ndimage.sum_labels(smooth, regions, numbers)
    by_heat = numbers[np.argsort(-region_heat, kind="stable")]
    kept = by_heat[: np.sum(region_heat >= config.weak_share * region_heat.max())]
    is_candidate = np.isin(regions, kept)
    candidates, heat_of = np.argwhere(is_candidate), smooth[is_candidate]

    first = ndimage.maximum_position(smooth, regions, kept[: config.num_points])
    positions = candidates.astype(float)
    centers, _ = kmeans(positions, np.array(first, dtype=float))
    cluster_of, _ = vq(positions, centers)
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
    """Centers of patches (row, column) [P, 2] in pixels, float64 (x, y) [P, 2].

    As in EfficientSAM's prompt encoder, (0, 0) is the center of the first pixel, so the center of
    the first patch of 16 pixels is 7.5.

    Args:
        points: (row, column) of patches, [P, 2].
        grid: (h, w) of the patches.
        image_size: height and width of the image in pixels.
    """
    pixels = (points + 0.5) * np.divide(image_size, grid) - 0.5
    return pixels[:, ::-1]


def point_prompts(
    heat: Tensor, grid: tuple[int, int], image_size: tuple[int, int], config: PointsConfig
) -> PointPrompts:
    """Point prompts of heat maps [Q, N], on their device. See ``find_points`` and ``to_pixels``.

    A question without points has only padding. Raises UserError for heat that isn't finite.
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
    """The hottest of ``positions`` [C, 2]; among equally hot ones the most central."""
    equal = positions[heat >= heat.max() * (1 - EQUAL_TOLERANCE)]
    distance = np.linalg.norm(equal - equal.mean(axis=0), axis=1)
    return equal[distance.argmin()]
