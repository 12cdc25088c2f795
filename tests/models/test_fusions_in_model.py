"""Every fusion in the model: losses, gradients, heat maps and answers."""

from typing import Any

import pytest
import torch

from lavis_ext.models.base import total_loss
from tests import tiny

FUSIONS: dict[str, dict[str, Any]] = {
    "channel_concat": {},
    "local_cross_attention": {},
    "spatial_aggregator": {"depth": 1, "heads": 4},
    "gated_adapter": {},
    "expert_attention": {"depth": 1, "heads": 4},
}
FINE = {**tiny.STREAMS["segmentation"], "patch_size": 4}
"""8 x 8 patches, beside BLIP's 4 x 4."""
COARSE = tiny.STREAMS["segmentation"]


def streams(segmentation: dict[str, Any]) -> dict[str, Any]:
    return {"grid": tiny.STREAMS["grid"], "segmentation": segmentation}


@pytest.mark.parametrize("segmentation", [FINE, COARSE], ids=["fine", "coarse"])
@pytest.mark.parametrize("name", FUSIONS)
def test_losses_reach_every_trained_parameter(name: str, segmentation: dict[str, Any]) -> None:
    fusion = {"name": name, **FUSIONS[name], "gate": False}
    model = tiny.make_model(
        {"itm": None, "answer": tiny.HEAD}, fusion, streams=streams(segmentation)
    )
    output = model(tiny.make_samples())
    total_loss(output).backward()
    trained = {n: p for n, p in model.named_parameters() if n.startswith("fusion.")}
    assert trained
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(p.grad.any() for p in trained.values())


@pytest.mark.parametrize("name", FUSIONS)
def test_before_training_heat_maps_and_answers_are_blips(name: str) -> None:
    samples = tiny.make_samples()
    alone = tiny.make_answering_model({"name": "first_only"}, streams=streams(FINE))
    model = tiny.make_answering_model({"name": name, **FUSIONS[name]}, streams=streams(FINE))
    model.load_state_dict(alone.state_dict(), strict=False)  # all but the fusion
    ours, blips = model.answer(samples), alone.answer(samples)
    assert torch.equal(ours.heat, blips.heat)
    assert ours.answers == blips.answers


@pytest.mark.parametrize("name", FUSIONS)
def test_heat_maps_of_a_trained_fusion_are_finite_and_its_own(name: str) -> None:
    model = tiny.make_answering_model(
        {"name": name, **FUSIONS[name], "gate": False}, streams=streams(FINE)
    )
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5)
    samples = tiny.make_samples()
    located = model.locate(samples)
    heat = located.heat
    assert heat.shape == (8, 16)
    assert heat.isfinite().all()
    changed = {**samples, "images": {**samples["images"]}}
    changed["images"]["segmentation"] = 255 - samples["images"]["segmentation"]
    assert not torch.equal(model.locate(changed).heat, heat)
