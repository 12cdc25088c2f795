"""LAVIS's own tasks and runner call the model with LAVIS's samples, and score its answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lavis_ext
from lavis_ext.common.errors import UserError
from lavis_ext.encoders.blip.encoder import CLIP_MEAN, CLIP_STD
from lavis_ext.evaluation.vqa.accuracy import processed
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.registry import registry
from tests.lavis_task import (
    SPLIT,
    asked,
    of_lavis,
    one_process,
    own_score,
    processors,
    run_of_lavis,
    vqa_run,
    write,
)
from tests.tiny import SIDE, make_answering_model, make_samples


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What LAVIS registers here, and the paths of its runner, are gone after each test."""
    for kind in registry.mapping:
        if isinstance(registry.mapping[kind], dict):
            monkeypatch.setitem(registry.mapping, kind, dict(registry.mapping[kind]))


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    with one_process(tmp_path):
        yield


@pytest.fixture(scope="module")
def miniature() -> PnpVqaFusion:
    model = lavis_ext.load_model("pnp_vqa_fusion", "mini", is_eval=True)
    assert isinstance(model, PnpVqaFusion)
    return model


@pytest.fixture(scope="module")
def tiny_model() -> PnpVqaFusion:
    return make_answering_model()


@pytest.mark.usefixtures("_one_process")
def test_laviss_vqa_task_and_runner_score_the_models_answers(
    miniature: PnpVqaFusion, mini_gqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = asked(mini_gqa)
    found, results, own = vqa_run(miniature, mini_gqa, records, tmp_path, monkeypatch)
    answers = json.loads((results / f"{SPLIT}_vqa_result.json").read_text())
    assert [each["question_id"] for each in answers] == [each["question_id"] for each in records]
    assert [each["answer"] for each in answers] == own.answers
    captions = json.loads((results / f"{SPLIT}_caption_result.json").read_text())
    assert [each["caption"] for each in captions] == own.captions
    heats = torch.load(results / f"{SPLIT}_gradcam_result.pth")["result"]
    torch.testing.assert_close(
        torch.stack([each["gradcam"] for each in heats]), own.patch_heat, atol=1e-6, rtol=1e-3
    )
    assert found["agg_metrics"] == pytest.approx(own_score(own.answers, records), abs=0.01)
    assert found["agg_metrics"] > 50, "the miniature answers three of four"


@pytest.mark.usefixtures("_one_process")
def test_laviss_gqa_task_scores_by_vqas_rules(
    miniature: PnpVqaFusion, mini_gqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = asked(mini_gqa)[:8]
    pictures, questions = processors(monkeypatch, 128)
    dataset = of_lavis("datasets.datasets.gqa_datasets").GQAEvalDataset(
        pictures, questions, str(mini_gqa / "images"), [write(tmp_path / "list.json", records)]
    )
    found, results = run_of_lavis("gqa_eval.yaml", "GQARCTask", dataset, miniature, tmp_path)
    answers = json.loads((results / f"{SPLIT}_vqa_result.json").read_text())
    right = [processed(each["pred_ans"]) == each["gt_ans"] for each in answers]
    assert len(right) == 8
    assert found["acc"] == pytest.approx(100 * sum(right) / 8)


# --- samples -------------------------------------------------------------------------------------


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    return (images.float() / 255 - mean) / std


def lavis_samples(count: int = 3) -> dict[str, Any]:
    samples = make_samples(images=count)
    return {
        "image": normalized(samples["images"]["grid"]),
        "text_input": samples["text_input"][:count],
    }


def test_image_and_question_are_enough(tiny_model: PnpVqaFusion) -> None:
    samples = lavis_samples()
    answers, captions, heat = tiny_model.predict_answers(samples)
    assert len(answers) == len(captions) == 3
    assert all(isinstance(answer, str) for answer in answers)
    assert heat.shape == (3, 16)
    own = make_samples(images=3)
    pixels = own["images"]["grid"]
    output = tiny_model.answer(
        {
            "images": {"grid": pixels, "segmentation": pixels},
            "image_index": torch.arange(3),
            "text_input": samples["text_input"],
            "ids": samples["text_input"],
        }
    )
    assert (answers, captions) == (output.answers, output.captions)
    torch.testing.assert_close(heat, output.patch_heat)


def test_one_question_may_be_a_text_and_images_of_another_size_are_resized(
    tiny_model: PnpVqaFusion,
) -> None:
    image = torch.randn(1, 3, 2 * SIDE, SIDE)
    answers, captions, heat = tiny_model.predict_answers(
        {"image": image, "text_input": "is there a circle?"}
    )
    assert (len(answers), len(captions), heat.shape) == (1, 1, (1, 16))


def test_laviss_three_steps_give_the_results_of_predict_answers(tiny_model: PnpVqaFusion) -> None:
    samples = lavis_samples()
    expected = tiny_model.predict_answers(dict(samples), num_captions=2, num_patches=5)
    samples = tiny_model.forward_itm(samples=samples)
    samples = tiny_model.forward_cap(samples=samples, num_captions=2, num_patches=5)
    answers = tiny_model.forward_qa(samples, num_captions=2)
    assert (answers, samples["captions"]) == expected[:2]
    torch.testing.assert_close(samples["gradcams"], expected[2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": None}, r"have no images, image_index.*image and text_input, as in LAVIS"),
        ({"text_input": None}, r"no 'text_input'"),
        ({"text_input": ["red?"]}, r"1 questions and samples\['image'\] 3 images"),
        ({"image": torch.zeros(3, 3, SIDE, SIDE).byte()}, r"torch\.uint8 .*blip_image_eval"),
        ({"image": torch.zeros(3, SIDE, SIDE)}, r"\[3, 32, 32\].*\[questions, 3, height, width\]"),
    ],
)
def test_wrong_samples_are_named(
    tiny_model: PnpVqaFusion, changed: dict[str, Any], message: str
) -> None:
    samples = {k: v for k, v in (lavis_samples() | changed).items() if v is not None}
    with pytest.raises(UserError, match=message):
        tiny_model.predict_answers(samples)


def test_a_missing_previous_step_is_named(tiny_model: PnpVqaFusion) -> None:
    with pytest.raises(UserError, match=r"no 'gradcams'; call forward_itm first"):
        tiny_model.forward_cap(lavis_samples())
    with pytest.raises(UserError, match=r"no 'captions'; call forward_cap first"):
        tiny_model.forward_qa(lavis_samples())
