"""Masks raise the heat inside and damp it outside; without masks it is unchanged."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check
from lavis_ext.models.pnp_vqa.refined_heat import RefinedHeat, RefinedHeatConfig, refine

GRID = (4, 6)
SIZE = (32, 48)


def make_heat(questions: int = 2) -> Tensor:
    return torch.rand(questions, 24, generator=torch.Generator().manual_seed(0))


def boxes(*corners: tuple[int, int, int, int]) -> Tensor:
    """bool [1, M, 32, 48]: a mask for each (top, left, bottom, right)."""
    masks = torch.zeros(1, len(corners), *SIZE, dtype=torch.bool)
    for number, (top, left, bottom, right) in enumerate(corners):
        masks[0, number, top:bottom, left:right] = True
    return masks


def refined(heat: Tensor, masks: Tensor, valid: Any = True, weight: float = 0.5) -> RefinedHeat:
    config = RefinedHeatConfig(weight=weight)
    check(config, "model.refined_heat")
    masks = masks.expand(len(heat), -1, -1, -1)
    valid = torch.as_tensor(valid).expand(masks.shape[:2])
    return refine(heat, GRID, masks, valid, config)


def bilinear(heat: Tensor) -> Tensor:
    return F.interpolate(heat.view(-1, 1, *GRID), SIZE, mode="bilinear", align_corners=False)[:, 0]


def iou(heat: Tensor, mask: Tensor) -> float:
    """IoU of the positions above half of the maximum with the mask, both [H', W']."""
    hot = heat > heat.max() / 2
    return float((hot & mask).sum() / (hot | mask).sum())


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_heat_is_increased_inside_and_reduced_outside(weight: float) -> None:
    heat, masks = make_heat(), boxes((8, 8, 24, 24), (0, 32, 16, 48))
    inside, raw = masks.any(dim=1)[0], bilinear(heat)
    pixels = refined(heat, masks, weight=weight).pixels
    gain = pixels - raw
    top = heat.amax(dim=1)
    torch.testing.assert_close(gain[:, inside], (weight * top)[:, None].expand(2, 512))
    torch.testing.assert_close(pixels[:, ~inside], (1 - weight) * raw[:, ~inside])


def test_heat_inside_the_masks_keeps_its_order() -> None:
    heat, masks = make_heat(1), boxes((8, 8, 24, 24))
    inside, raw = masks[0, 0], bilinear(heat)[0]
    pixels = refined(heat, masks, weight=1.0).pixels[0]
    assert torch.equal(pixels[inside].argsort(stable=True), raw[inside].argsort(stable=True))


@pytest.mark.parametrize("kind", ["weight 0", "none valid", "all empty"])
def test_without_masks_or_weight_the_map_stays_exactly_raw(kind: str) -> None:
    heat, masks = make_heat(), boxes((8, 8, 24, 24), (0, 32, 16, 48))
    if kind == "all empty":
        masks = torch.zeros_like(masks)
    found = refined(heat, masks, kind != "none valid", weight=0.0 if kind == "weight 0" else 1.0)
    assert torch.equal(found.patches, heat)
    assert torch.equal(found.pixels, bilinear(heat))


def test_questions_without_masks_stay_raw_beside_others() -> None:
    heat, masks = make_heat(3), boxes((8, 8, 24, 24), (0, 32, 16, 48))
    valid = torch.tensor([[True, False], [False, False], [True, True]])
    found = refined(heat, masks, valid)
    assert torch.equal(found.patches[1], heat[1])
    torch.testing.assert_close(found.pixels[:1], refined(heat[:1], masks[:, :1]).pixels)
    torch.testing.assert_close(found.pixels[2:], refined(heat[2:], masks).pixels)


def test_invalid_masks_are_ignored() -> None:
    heat, masks = make_heat(1), boxes((8, 8, 24, 24), (0, 0, 1, 1)).float()
    masks[:, 1] = torch.nan
    found = refined(heat, masks, [True, False])
    assert torch.equal(found.pixels, refined(heat, masks[:, :1]).pixels)


def test_one_mask_for_all_points_equals_one_for_each() -> None:
    heat, masks = make_heat(), boxes((8, 8, 24, 24), (16, 16, 30, 40))
    union = masks.any(dim=1, keepdim=True)
    assert torch.equal(refined(heat, masks).pixels, refined(heat, union).pixels)
    assert torch.equal(refined(heat, masks).patches, refined(heat, union).patches)


def test_patches_follow_the_area_of_the_masks() -> None:
    heat = torch.ones(1, 24)
    # Patches are 8 x 8 pixels: the second has 3 of its columns in the mask, the first all.
    patches = refined(heat, boxes((0, 0, 8, 11)), weight=0.4).patches.view(GRID)
    share = 3 / 8
    expected = torch.full(GRID, 0.6)
    expected[0, 0] = 1.4
    expected[0, 1] = 1 - 0.4 * (1 - share) + 0.4 * share
    torch.testing.assert_close(patches, expected)


def test_patches_are_the_area_average_of_patchwise_constant_heat() -> None:
    heat, masks = make_heat(), boxes((3, 5, 27, 22), (0, 31, 17, 48))
    constant = F.interpolate(heat.view(-1, 1, *GRID), SIZE, mode="nearest")[:, 0]
    inside = masks.any(dim=1).float()
    top = heat.amax(dim=1).view(-1, 1, 1)
    whole = torch.lerp(constant, inside * (constant + top), 0.7)
    expected = F.avg_pool2d(whole[:, None], 8).flatten(1)
    torch.testing.assert_close(refined(heat, masks, weight=0.7).patches, expected)


def test_probabilities_give_values_in_between() -> None:
    heat, masks = make_heat(1), boxes((8, 8, 24, 24))
    whole, none = refined(heat, masks).pixels, refined(heat, boxes((0, 0, 1, 1))).pixels
    half = refined(heat, masks * 0.5 + boxes((0, 0, 1, 1)) * 1.0).pixels
    torch.testing.assert_close(half[0, 12:20, 12:20], (whole + none)[0, 12:20, 12:20] / 2)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_refined_map_fits_the_object_better(weight: float) -> None:
    """Heat on a part of the object and some outside, as typical for GradCAM."""
    mask = boxes((8, 8, 24, 32))
    heat = torch.full((1, 24), 0.1)
    heat.view(GRID)[1, 1:3] = 1.0
    heat.view(GRID)[2, 3] = 0.5
    heat.view(GRID)[0, 5] = 0.7
    found = refined(heat, mask, weight=weight)
    assert iou(found.pixels[0], mask[0, 0]) > 1.5 * iou(bilinear(heat)[0], mask[0, 0])
    on_object = F.avg_pool2d(mask.float(), 8).flatten()
    share = (found.patches * on_object).sum() / found.patches.sum()
    assert share > 1.3 * (heat * on_object).sum() / heat.sum()


def test_a_map_without_heat_stays_zero() -> None:
    found = refined(torch.zeros(1, 24), boxes((8, 8, 24, 24)))
    assert found.pixels.eq(0).all()
    assert found.patches.eq(0).all()


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_patches_can_be_sampled_by_refined_heat(weight: float) -> None:
    """A mask at a resolution that isn't a multiple of the grid, in half precision."""
    heat = make_heat().bfloat16()
    masks = F.interpolate(boxes((8, 8, 24, 24)).float(), (23, 37))
    found = refined(heat, masks.bfloat16(), weight=weight)
    assert found.pixels.shape == (2, 23, 37)
    assert found.patches.shape == (2, 24)
    assert found.pixels.dtype == found.patches.dtype == torch.float32
    assert (found.patches >= 0).all()
    assert found.patches.isfinite().all()
    assert (found.pixels <= (1 + weight) * heat.float().amax() + 1e-6).all()


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_weights_out_of_range_name_their_key(weight: float) -> None:
    with pytest.raises(UserError, match=rf"model\.refined_heat\.weight is {weight}"):
        refined(make_heat(), boxes((0, 0, 8, 8)), weight=weight)
