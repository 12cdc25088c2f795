"""The model types at their full size, built without memory for their parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

import lavis_ext
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.registry import registry
from tests.tiny import vocabulary

TRAIN = Path(__file__).parents[2] / "projects" / "pnp-vqa" / "train" / "gqa_train.yaml"
PHOTOGRAPHS = Path(__file__).parents[2] / "projects" / "daquar" / "answer.yaml"
TOKENIZER = "model.streams.grid.tokenizer=packaged:miniature/vocabulary.txt"
MILLIONS = {
    # model type: BLIP, EfficientSAM (0 without it), DIFNet (0 for the first stream alone)
    "base_esam": (223.7, 26.4, 85.1),
    "base_esam_ti": (223.7, 10.2, 85.1),
    "large_esam": (446.1, 26.4, 151.2),
    "paper_difnet": (223.7, 26.4, 9.5),
    "mini": (1.5, 0.8, 0.6),
    "mini_fine": (1.5, 0.8, 0.6),
    "pnp_vqa_base": (446.1, 0.0, 0.0),
    "pnp_vqa_large": (446.1, 0.0, 0.0),
    "pnp_vqa_3b": (446.1, 0.0, 0.0),
}


def build(configured: Callable[..., Config], *options: str) -> PnpVqaFusion:
    cfg = configured(TOKENIZER, *options, cfg_path=TRAIN)
    with torch.device("meta"):
        return PnpVqaFusion(cfg.model, vocabulary(), load_weights=False)


def millions(module: Any) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)


@pytest.mark.parametrize("model_type", MILLIONS)
def test_every_model_type_has_the_size_in_its_config(
    configured: Callable[..., Config], model_type: str
) -> None:
    model = build(configured, f"model.model_type={model_type}")
    found = (
        millions(model.streams["grid"]),
        millions(model.streams["segmentation"]) if "segmentation" in model.streams else 0.0,
        millions(model.fusion.encoder),
    )
    assert found == MILLIONS[model_type]


def test_every_type_is_covered() -> None:
    assert {*MILLIONS, "photographs"} == set(PnpVqaFusion.types())


def test_the_type_for_photographs_is_built_without_its_packages(
    configured: Callable[..., Config],
) -> None:
    cfg = configured(cfg_path=PHOTOGRAPHS)
    with torch.device("meta"):
        model = PnpVqaFusion(cfg.model, vocabulary(), load_weights=False)
    assert {name: stream.width for name, stream in model.streams.items()} == {
        "fine": 352,
        "whole": 320,
    }
    assert millions(model.question_encoder) == 22.6


@pytest.mark.parametrize(
    ("fusion", "gated", "segmentation"),
    [
        ("difnet", True, True),
        ("sum", True, True),
        ("segmentation_only", False, True),
        ("grid_only", False, False),
    ],
)
def test_another_fusion_is_one_option(
    configured: Callable[..., Config], fusion: str, gated: bool, segmentation: bool
) -> None:
    model = build(configured, f"model.fusion.name={fusion}")
    assert (model.fusion.gate is not None) == gated
    assert ("segmentation" in model.streams) == segmentation


def test_load_model_builds_as_laviss_does() -> None:
    model = lavis_ext.load_model("pnp_vqa_fusion", "mini", is_eval=True)
    assert type(model) is registry.get_model_class("pnp_vqa_fusion")
    assert not model.training


def test_weights_that_cannot_be_fetched_name_the_key_for_a_local_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(HfApi, "model_info", no_network)
    with pytest.raises(UserError, match=r"streams\.grid\.tokenizer: .*no network.*local path"):
        lavis_ext.load_model("pnp_vqa_fusion", "base_esam")


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"base_esam, .*Did you mean 'base_esam'"):
        lavis_ext.load_model("pnp_vqa_fusion", "base_esma")
