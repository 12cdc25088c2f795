"""The heat map with the masks of the objects it points at: raised inside, damped outside.

Q questions, M masks of a question, H' x W' pixels of a mask, N = h * w patches row by row.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lavis_ext.config.schema import option


@dataclass
class RefinedHeatConfig:
    """How much masks change the heat map."""

    weight: float = option(
        0.5,
        "0 leaves the heat map raw; 1 adds its maximum inside the masks and removes all outside",
        at_least=0,
        at_most=1,
    )


class RefinedHeat(NamedTuple):
    """Refined heat maps, in the unit of the raw ones and at most 1 + weight times as high."""

    pixels: Tensor
    """float32 [Q, H', W'], for pictures and to be compared with masks."""
    patches: Tensor
    """float32 [Q, N], to draw patches by."""


def refine(
    heat: Tensor, grid: tuple[int, int], masks: Tensor, valid: Tensor, config: RefinedHeatConfig
) -> RefinedHeat:
    """Refined heat maps.

    With u the heat, m the union of the question's masks and w the weight, it is

        u * (1 - w * (1 - m)) + w * m * max(u)

    so that inside no heat is lost and the order of hot and less hot stays, while outside a share w
    is taken away. Where no mask is valid, or none has any pixel, the map stays raw, exactly; so it
    does with a weight of 0.

    ``pixels`` has u interpolated bilinearly. In ``patches`` u is the patch's own heat and m the
    share of its area inside the masks: the area average of the map with u constant in each patch.

    Args:
        heat: raw heat maps, float [Q, N], at least 0.
        grid: (h, w).
        masks: bool, or probabilities in [0, 1], [Q, M, H', W']: one for each point or one for all.
        valid: bool [Q, M], the masks that count; those of padded points don't.
        config: how much masks change the heat map.
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
