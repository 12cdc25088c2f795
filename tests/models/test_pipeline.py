"""The whole pipeline: from a batch of questions to answers, the same in every batch."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.config.typed import typed
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.decoders import blip_captioner as captioner
from lavis_ext.decoders.patches import PatchConfig, draw_patches
from lavis_ext.models.pnp_vqa.answering import PipelineOutput
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.tasks.gqa import GqaReadingComprehensionFusionTask
from tests.tiny import (
    make_answering_model,
    make_model,
    make_samples,
    model_section,
    vocabulary,
)


@pytest.fixture(scope="module")
def model() -> PnpVqaFusion:
    return make_answering_model()


@pytest.fixture(scope="module")
def samples() -> QuestionBatch:
    return make_samples(images=8)


@pytest.fixture(scope="module")
def output(model: PnpVqaFusion, samples: QuestionBatch) -> PipelineOutput:
    return model.answer(samples)


def part_of(samples: QuestionBatch, questions: list[int]) -> QuestionBatch:
    images, index = torch.unique(samples["image_index"][questions], return_inverse=True)
    return {
        "images": {
            "grid": samples["images"]["grid"][images],
            "segmentation": samples["images"]["segmentation"][images],
        },
        "image_index": index,
        "text_input": [samples["text_input"][q] for q in questions],
        "ids": [samples["ids"][q] for q in questions],
    }


def test_every_question_gets_heat_points_masks_and_captions(
    output: PipelineOutput, samples: QuestionBatch
) -> None:
    count = len(samples["text_input"])
    assert len(output.answers) == len(output.captions) == len(output.repeated) == count
    assert output.heat.shape == output.patch_heat.shape == (count, 16)
    assert output.grid == (4, 4)
    assert output.refined.shape == output.masks.shape == (count, 8, 8)
    assert output.image_size == (32, 32)
    assert output.points.shape == (count, 3, 2)
    assert ((output.matching > 0) & (output.matching < 1)).all()
    without = (output.labels != 1).all(dim=1)
    assert not output.masks[without].any(), "no points, no mask"
    torch.testing.assert_close(output.patch_heat[without], output.heat[without])


@pytest.mark.parametrize("size", [1, 3])
def test_batch_size_and_order_change_nothing(
    model: PnpVqaFusion, samples: QuestionBatch, output: PipelineOutput, size: int
) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(0, 16, size):
        rows = order[start : start + size]
        part = model.answer(part_of(samples, rows))
        assert part.answers == [output.answers[row] for row in rows]
        assert part.captions == [output.captions[row] for row in rows]
        assert part.repeated == [output.repeated[row] for row in rows]


def test_the_state_of_torchs_generator_changes_nothing(
    model: PnpVqaFusion, samples: QuestionBatch, output: PipelineOutput
) -> None:
    torch.manual_seed(123)
    assert model.answer(samples).captions == output.captions


def test_an_image_is_encoded_once_for_all_its_questions(
    model: PnpVqaFusion, samples: QuestionBatch
) -> None:
    seen: list[int] = []
    modules = (model.blip.blip.vision_model.embeddings, model.streams["segmentation"].image_encoder)
    hooks = [
        module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        for module in modules
    ]
    try:
        model.locate(samples)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [8, 8], "16 questions about 8 images"


def test_predict_answers_has_laviss_arguments_and_results(
    model: PnpVqaFusion, samples: QuestionBatch, output: PipelineOutput
) -> None:
    answers, captions, heat = model.predict_answers(samples)
    assert (answers, captions) == (output.answers, output.captions)
    torch.testing.assert_close(heat, output.patch_heat)
    _, fewer, _ = model.predict_answers(
        samples,
        num_beams=2,
        max_len=3,
        min_len=1,
        internal_bsz_fid=2,
        num_captions=2,
        num_captions_fid=1,
        cap_max_length=8,
        cap_min_length=0,
        top_k=5,
        top_p=0.9,
        repetition_penalty=1.1,
        num_patches=2,
        block_num=0,
    )
    assert all(len(texts) <= 2 for texts in fewer)
    named = list(inspect.signature(model.predict_answers).parameters)
    assert named == [
        "samples",
        "num_beams",
        "inference_method",
        "max_len",
        "min_len",
        "internal_bsz_fid",
        "num_captions",
        "num_captions_fid",
        "cap_max_length",
        "cap_min_length",
        "top_k",
        "top_p",
        "repetition_penalty",
        "num_patches",
        "block_num",
    ], "LAVIS 1.0.2, models/pnp_vqa_models/pnp_vqa.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inference_method": "rank"}, "inference_method is 'rank'"),
        ({"num_patches": 17}, r"num_patches is 17, but an image has only 16"),
        ({"block_num": 1}, r"block_num is 1; .*0 to 0"),
        ({"num_beams": 0}, r"model\.reader\.num_beams is 0"),
        ({"num_captions": 0}, r"num_captions is 0"),
    ],
)
def test_wrong_arguments_are_named(
    model: PnpVqaFusion, samples: QuestionBatch, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.predict_answers(samples, **arguments)


@pytest.mark.parametrize(("choose", "patches"), [("guided", 2), ("uniform", 2), ("all", 16)])
def test_patches_are_chosen_as_the_config_says(
    samples: QuestionBatch, monkeypatch: pytest.MonkeyPatch, choose: str, patches: int
) -> None:
    model = make_answering_model()
    model.config.captioner.sampling.patches = PatchConfig(num_patches=2, choose=choose)
    heat_of_two = torch.zeros(16)
    heat_of_two[[5, 10]] = 1.0
    drawn: list[Tensor] = []

    def with_two_hot(heat: Tensor, *given: Any) -> Tensor:
        drawn.append(draw_patches(heat_of_two.expand_as(heat), *given))
        return drawn[-1]

    monkeypatch.setattr(captioner, "draw_patches", with_two_hot)
    model.answer(samples)
    assert all(each.shape[1] == patches for each in drawn)
    hot = torch.isin(torch.cat([each.flatten() for each in drawn]), torch.tensor([5, 10]))
    assert hot.all() == (choose == "guided")


def test_a_captioner_with_one_caption_ends_and_counts_repeats(
    samples: QuestionBatch, configured: Callable[..., Config]
) -> None:
    model = make_answering_model()
    words = model.captioner.tokenizer.get_vocab()
    head = model.captioner.blip.text_decoder.cls.predictions
    with torch.no_grad():
        head.decoder.bias.fill_(-1e4)
        head.decoder.bias[words["circle"]] = 1e4
    output = model.answer(samples)
    assert all(len(set(texts)) == len(texts) == 1 for texts in output.captions)
    tries = model.config.captioner.sampling.max_tries
    assert output.repeated == [2 * tries] * 16, "two of three captions, drawn again and again"
    task = GqaReadingComprehensionFusionTask(configured())
    report = task.valid_step(model, samples).report
    assert float(report["questions_short_of_captions"]) == 16
    assert float(report["captions_repeated"]) == 16 * 2 * tries


@pytest.mark.parametrize("name", ["grid_only", "segmentation_only", "sum"])
def test_every_fusion_answers(name: str, samples: QuestionBatch) -> None:
    fusion = {"name": name, **({} if name == "sum" else {"gate": False})}
    output = make_answering_model(fusion).answer(part_of(samples, [0, 1]))
    assert len(output.answers) == 2


def test_parts_that_do_not_fit_are_errors_before_anything_is_built() -> None:
    section = model_section({})
    config = typed(PnpVqaFusionConfig, section, "model")
    with pytest.raises(UserError, match=r"model\.captioner\.weights is null"):
        PnpVqaFusion(config, vocabulary(), answering=True)
    section["captioner"] = {**section["captioner"], "patch_size": 16}
    config = typed(PnpVqaFusionConfig, section, "model")
    with pytest.raises(UserError, match=r"captioner\.patch_size is 16 and .*grid\.patch_size"):
        PnpVqaFusion(config, vocabulary(), answering=True, load_weights=False)


def test_training_builds_neither_captioner_nor_reader() -> None:
    model = make_model({"itm": None})
    assert not hasattr(model, "captioner")
    assert not hasattr(model, "reader")
    state = make_answering_model().requires_grad_(False).exported_state()
    assert not [name for name in state if name.startswith(("captioner.", "reader."))]
