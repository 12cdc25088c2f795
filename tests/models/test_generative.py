"""The interface of models that generate text: gradients with respect to images, and errors."""

import pytest
import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests.tiny import QUESTIONS, SIDE, make_answering_model, make_samples

TARGETS = ["a red circle", "a blue square on a beach"]
STEP = 1e-6


@pytest.fixture(scope="module")
def model() -> PnpVqaFusion:
    """A frozen model in float64, where only the image gets a gradient."""
    found = make_answering_model().double().requires_grad_(False)
    with torch.no_grad():
        assert found.fusion.gate is not None
        found.fusion.gate.normal_(std=0.5)
    return found


@pytest.fixture
def image() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def assert_gradient_is_the_finite_difference(scalar, image: Tensor) -> None:  # type: ignore[no-untyped-def]
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(image), image)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        ahead, behind = scalar(image + STEP * direction), scalar(image - STEP * direction)
    expected = (ahead - behind) / (2 * STEP)
    assert expected.abs() > 1e-6
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-9)


def test_an_images_gradient_passes_frozen_encoders_and_the_fusion(
    model: PnpVqaFusion, image: Tensor
) -> None:
    samples = make_samples(images=2)

    def fused(pixels: Tensor) -> Tensor:
        return model.fuse({**samples, "images": dict.fromkeys(model.streams, pixels)}).sin().sum()

    assert_gradient_is_the_finite_difference(fused, image)


def test_an_images_gradient_reaches_it_from_an_objectives_loss(
    model: PnpVqaFusion, image: Tensor
) -> None:
    samples = make_samples(images=2)

    def loss(pixels: Tensor) -> Tensor:
        output = model({**samples, "images": dict.fromkeys(model.streams, pixels)})
        return torch.stack([*output.losses.values()]).sum().double()

    (gradient,) = torch.autograd.grad(loss(image.requires_grad_()), image)
    assert gradient.abs().max() > 0


def test_an_images_gradient_passes_the_captioners_logits_and_hidden_states(
    model: PnpVqaFusion, image: Tensor
) -> None:
    prompts = ["a picture of ", ""]

    def scored(pixels: Tensor) -> Tensor:
        scores = model.captioner.score_targets(pixels, prompts, TARGETS)
        log = scores.logits.log_softmax(dim=-1)[..., 5]
        return (log * scores.mask).sum() + scores.hidden_states.sin()[scores.mask].sum()

    assert_gradient_is_the_finite_difference(scored, image)


def test_scores_of_targets_are_those_that_the_loss_is_made_of(
    model: PnpVqaFusion, image: Tensor
) -> None:
    captioner = model.captioner
    prompt = captioner.config.prompt
    scores = captioner.score_targets(image, [prompt] * 2, TARGETS)
    losses = captioner.loss(captioner.encode_image(image), TARGETS, None)
    for row, text in enumerate(TARGETS):
        ids = [*captioner.tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids.append(captioner.tokenizer.sep_token_id)
        assert scores.mask[row].sum() == len(ids)
        log = scores.logits[row, : len(ids)].log_softmax(dim=-1)
        expected = -log[torch.arange(len(ids)), torch.tensor(ids)].mean()
        torch.testing.assert_close(losses[row], expected)


def test_a_captioner_generates_the_same_text_in_any_batch(
    model: PnpVqaFusion, image: Tensor
) -> None:
    options = {"num_beams": 1, "min_length": 0, "max_length": 8}
    together = model.captioner.generate(image, ["a picture of ", "a"], options)
    alone = model.captioner.generate(image[1:], ["a"], options)
    assert together[1:] == alone


def test_generate_gives_the_answers_of_the_pipeline() -> None:
    model = make_answering_model()
    pictures = make_samples()["images"]["grid"]
    asked = QUESTIONS[: len(pictures)]
    samples = {
        "images": dict.fromkeys(model.streams, pictures),
        "image_index": torch.arange(len(pictures)),
        "text_input": asked,
        "ids": asked,
    }
    assert model.generate(pictures, asked, {"num_captions": 2}) == (
        model.answer(samples, num_captions=2).answers  # type: ignore[arg-type]
    )


def test_unknown_options_and_scores_of_answers_are_errors(image: Tensor) -> None:
    model = make_answering_model()
    with pytest.raises(UserError, match="no option 'beams'"):
        model.generate(image.float(), QUESTIONS[:2], {"beams": 3})
    with pytest.raises(UserError, match="no such key"):
        model.captioner.generate(image.float(), [""] * 2, {"beams": 3})
    with pytest.raises(UserError, match="captions between image and answer"):
        model.score_targets(image.float(), QUESTIONS[:2], ["red", "blue"])
