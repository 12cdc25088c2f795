"""Refinement of a heat map by object masks: increased inside, reduced outside.

Shapes: Q questions, M masks of a question, H' x W' pixels, N = h * w patches row by row.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lavis_ext.config.schema import option


@dataclass
class RefinedHeatConfig:
    """Options of ``refine``."""

    weight: float = option(
        0.5,
        "0 leaves the heat map raw; 1 adds its maximum inside the masks and removes all outside.",
        at_least=0,
        at_most=1,
    )


class RefinedHeat(NamedTuple):
    """Refined heat maps, in the unit of the raw ones, at most 1 + weight times their maximum."""

    pixels: Tensor
    """float32 [Q, H', W'], for pictures and comparison with masks."""
    patches: Tensor
    """float32 [Q, N], for sampling patches."""


def refine(
    heat: Tensor, grid: tuple[int, int], masks: Tensor, valid: Tensor, config: RefinedHeatConfig
) -> RefinedHeat:
    """Refine heat maps by masks.

    With u the heat, m the union of the question's masks and w the weight, refined heat is

        u * (1 - w * (1 - m)) + w * m * max(u)

    Inside the masks, heat is never reduced and keeps its order; outside, it is reduced by the share
    w. The map stays exactly raw without valid masks, with empty masks only, or with a weight of 0.

    In ``pixels`` u is interpolated bilinearly. In ``patches`` u is the heat of the patch, and m the
    share of its area inside the masks.

    Args:
        heat: raw heat maps, float [Q, N], at least 0.
        grid: (h, w).
        masks: bool, or float probabilities, [Q, M, H', W'].
        valid: bool [Q, M], False for the masks of padding.
        config: options.
    """
    raw = heat.float().unflatten(1, grid)
    inside = masks.float().masked_fill(~valid[..., None, None], 0).amax(dim=1)  # [Q, H', W']
    inside_patch = F.adaptive_avg_pool2d(inside, grid)
    upsampled = F.interpolate(raw[:, None], inside.shape[1:], mode="bilinear")[:, 0]
    top = raw.amax(dim=(1, 2), keepdim=True)
    weight = config.weight * (inside.amax(dim=(1, 2), keepdim=True) > 0)
    return RefinedHeat(
        pixels=_raised(upsampled, inside, top, weight),
        patches=_raised(raw, inside_patch, top, weight).flatten(1),
    )


def _raised(heat: Tensor, inside: Tensor, top: Tensor, weight: Tensor) -> Tensor:
    return heat * (1 - weight * (1 - inside)) + weight * inside * top
