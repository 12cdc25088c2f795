"""Patches are sampled by heat, without replacement, and reproducibly for a question."""

import pytest
import torch
from scipy import stats

from lavis_ext.common.errors import UserError
from lavis_ext.decoders.keyed_noise import fold_in, text_keys
from lavis_ext.decoders.patches import PatchConfig, check_heat, draw_patches

HEAT = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
"""A map of 6 patches, two of them without heat."""


def drawn(config: PatchConfig, heat: torch.Tensor = HEAT, captions: int = 4000) -> torch.Tensor:
    """Patches of many captions of one question, [captions, P]."""
    keys = fold_in(text_keys(["02930152"]), torch.arange(captions))
    return draw_patches(heat, keys, config)


def shares(patches: torch.Tensor, of: int = 6) -> torch.Tensor:
    """Number of captions with each patch."""
    return torch.bincount(patches.flatten(), minlength=of) / len(patches)


def test_one_patch_is_drawn_in_proportion_to_heat() -> None:
    count = shares(drawn(PatchConfig(num_patches=1))) * 4000
    assert count[[0, 5]].tolist() == [0, 0]
    assert stats.chisquare(count[1:5].numpy(), (HEAT[1:5] / 10 * 4000).numpy()).pvalue > 0.001


def test_pairs_are_drawn_as_multinomial_draws_them() -> None:
    pairs = drawn(PatchConfig(num_patches=2))
    share = HEAT.double() / HEAT.double().sum()
    chances = {
        (a, b): float(share[a] * share[b] * (1 / (1 - share[a]) + 1 / (1 - share[b])))
        for a in range(1, 5)
        for b in range(a + 1, 5)
    }
    found = [int((pairs == torch.tensor(pair)).all(dim=1).sum()) for pair in chances]
    assert sum(found) == 4000
    assert stats.chisquare(found, [4000 * chance for chance in chances.values()]).pvalue > 0.001


def test_no_patch_twice_and_in_ascending_order() -> None:
    patches = drawn(PatchConfig(num_patches=4), captions=200)
    assert (patches.diff(dim=1) > 0).all()
    assert patches.dtype == torch.int64


def test_patches_without_heat_come_last() -> None:
    patches = drawn(PatchConfig(num_patches=5))
    assert (shares(patches)[1:5] == 1).all()
    # The one place that is left is shared evenly.
    assert shares(patches)[[0, 5]].tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_the_smallest_positive_heat_comes_before_zero() -> None:
    heat = torch.zeros(6)
    heat[3] = 1e-45
    assert (drawn(PatchConfig(num_patches=1), heat) == 3).all()


@pytest.mark.parametrize(
    ("choose", "heat"), [("uniform", HEAT), ("guided", torch.zeros(6)), ("guided", HEAT * 0 + 7)]
)
def test_uniform_when_asked_for_and_without_any_heat(choose: str, heat: torch.Tensor) -> None:
    patches = drawn(PatchConfig(num_patches=3, choose=choose), heat)
    assert shares(patches).tolist() == pytest.approx([0.5] * 6, abs=0.05)


def test_all_takes_every_patch() -> None:
    patches = drawn(PatchConfig(num_patches=2, choose="all"), captions=3)
    assert patches.tolist() == [[0, 1, 2, 3, 4, 5]] * 3


@pytest.mark.parametrize("choose", ["guided", "uniform", "all"])
def test_a_batch_of_questions_equals_each_alone(choose: str) -> None:
    config = PatchConfig(num_patches=20, choose=choose)
    ids = [f"{number:05d}" for number in range(7)]
    heat = torch.rand(7, 576, generator=torch.Generator().manual_seed(0))
    keys = fold_in(text_keys(ids)[:, None], torch.arange(5))
    together = draw_patches(heat[:, None], keys, config)
    assert together.shape == (7, 5, 576 if choose == "all" else 20)
    for row in (6, 2):
        assert torch.equal(draw_patches(heat[row], keys[row], config), together[row])
    if choose != "all":
        assert together.flatten(0, 1).unique(dim=0).shape[0] == 35, "each caption its own patches"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_invalid_heat_is_an_error_that_names_the_question(value: float) -> None:
    heat = torch.ones(3, 6)
    heat[1, 4] = value
    with pytest.raises(UserError, match=r"question 0017 .*(not finite|negative)"):
        check_heat(heat, ["0016", "0017", "0018"], PatchConfig(num_patches=2), "model.patches")


def test_too_many_patches_are_an_error() -> None:
    config = PatchConfig(num_patches=7)
    with pytest.raises(UserError, match=r"model\.patches\.num_patches is 7.* 6 patches"):
        check_heat(torch.ones(1, 6), ["1"], config, "model.patches")
    check_heat(torch.ones(1, 6), ["1"], PatchConfig(num_patches=6), "model.patches")
    check_heat(torch.ones(1, 6), ["1"], PatchConfig(num_patches=7, choose="all"), "model.patches")
