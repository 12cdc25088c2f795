"""The pipeline from Python: loaded, asked, and shown in a notebook."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lavis_ext
from lavis_ext.ask.pipeline import Pipeline
from lavis_ext.checkpoints import trained_weights
from lavis_ext.common.errors import UserError
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion

WEIGHTS = Path(lavis_ext.__file__).parent / "miniature" / "fusion_encoder.safetensors"
FEWER = ["model.captioner.sampling.num_captions=3"]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return lavis_ext.load_pipeline(options=FEWER, device="cpu")


@pytest.fixture(scope="module")
def picture(mini_gqa: Path) -> Image.Image:
    with Image.open(sorted((mini_gqa / "images").iterdir())[0]) as image:
        return image.convert("RGB")


def test_answers_have_heat_maps_points_and_masks(pipeline: Pipeline, picture: Any) -> None:
    asked = pipeline.ask(picture, ["What color is the circle?", "Is there a square?"])
    assert [each.question for each in asked] == ["What color is the circle?", "Is there a square?"]
    first = asked[0]
    assert first.answer
    assert 0 <= first.matching <= 1
    assert len(first.captions) == 3
    assert first.heat.shape == (8, 8)
    assert first.heat.min() >= 0
    assert first.refined.shape == first.mask.shape
    assert first.points.shape[1] == 2
    assert 0 <= first.points.min() <= first.points.max() <= 1
    alone = pipeline.ask(picture, "Is there a square?")[0]
    assert alone.answer == asked[1].answer
    np.testing.assert_allclose(alone.heat, asked[1].heat, atol=1e-5)


def test_fused_tokens_are_those_of_the_trained_fusion(pipeline: Pipeline, picture: Any) -> None:
    tokens = pipeline.fuse(picture)
    assert tokens.shape == (1, 1 + 64, 128)
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad
    several = pipeline.fuse([Image.new("RGB", (9, 5))] * 9 + [picture])  # two passes
    torch.testing.assert_close(several[9:], tokens, atol=1e-4, rtol=1e-4)
    images: Any = {"images": pipeline._pixels([picture])}
    first = pipeline.model.encode(images)["grid"].values
    assert not torch.allclose(tokens, first, atol=1e-2), "the gate is closed"
    with pytest.raises(UserError, match="there are no pictures"):
        pipeline.fuse([])


def test_a_notebook_shows_the_answers(pipeline: Pipeline, picture: Any) -> None:
    asked = pipeline.ask(picture, "Is there a <square>?", name="mine")
    shown = asked._repr_html_()
    assert "Is there a &lt;square&gt;?" in shown
    assert shown.count("<svg viewBox") == 4
    assert "mine" in shown
    with Image.open(io.BytesIO(asked._repr_png_())) as drawn:
        assert drawn.width == 1400
    assert repr(asked) == f"Is there a <square>? {asked[0].answer}"


@pytest.mark.parametrize("questions", [[], ["", "what?"], ["what?"] * 51])
def test_questions_are_checked(pipeline: Pipeline, picture: Any, questions: list[str]) -> None:
    with pytest.raises(UserError, match=r"[Qq]uestion"):
        pipeline.ask(picture, questions)


def test_transparent_and_gray_pictures_are_converted(pipeline: Pipeline, picture: Any) -> None:
    transparent = picture.copy()
    transparent.putalpha(255)
    tokens = pipeline.fuse([transparent, Image.new("L", (20, 30))])
    torch.testing.assert_close(tokens[:1], pipeline.fuse(picture), atol=1e-4, rtol=1e-4)


def fusion_of(model: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = model.fusion.state_dict()
    return state


def test_weights_are_loaded_by_path_hub_name_and_type(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copy(WEIGHTS, tmp_path / "mine.safetensors"))
    asked: list[Any] = []

    def hub(name: str, **options: Any) -> Path:
        asked.append((name, options["filenames"]))
        return copied

    trained = fusion_of(pipeline.model)
    by_type = lavis_ext.load_model("pnp_vqa_fusion", "mini")
    monkeypatch.setattr(trained_weights, "resolve", hub)
    by_path = PnpVqaFusion.from_pretrained(str(copied))
    by_name = PnpVqaFusion.from_pretrained("someone/fusion")
    assert asked[0] == ("someone/fusion", ("model.safetensors",))
    for model in (by_type, by_path, by_name):
        found = fusion_of(model)
        assert found.keys() == trained.keys()
        assert all(torch.equal(found[name], trained[name]) for name in trained)
        assert hasattr(model, "reader"), "it can answer"


def test_an_untrained_fusion_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PnpVqaFusion, "SHIPPED", {})
    with pytest.warns(
        UserWarning, match="no fusion weights are given, so the gate of mini is clos"
    ):
        lavis_ext.load_model("pnp_vqa_fusion", "mini")
    with pytest.warns(UserWarning, match="no fusion weights are given"):
        lavis_ext.load_pipeline(model_type="mini", device="cpu")


def test_weights_that_are_not_there_are_an_error() -> None:
    with pytest.raises(UserError, match=r"there is no file no\.safetensors"):
        lavis_ext.load_pipeline("no.safetensors")
    with pytest.raises(UserError, match=r"there is no file no\.safetensors"):
        PnpVqaFusion.from_pretrained("no.safetensors")
