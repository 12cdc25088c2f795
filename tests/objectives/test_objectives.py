"""The objectives learn, and only from question and image."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.objectives.matching import _matching
from lavis_ext.runners.freezing import freeze_all_but, train_mode, trained_patterns
from tests.tiny import DIFNET, HEAD, make_model, make_samples, model_section

OBJECTIVES: dict[str, dict[str, Any]] = {"itm": {}, "head": HEAD, "answer": HEAD}


def mean_loss(model: PnpVqaFusion, samples: QuestionBatch) -> torch.Tensor:
    return total_loss(model(samples)) / samples["global_size"]


def overfit(model: PnpVqaFusion, samples: QuestionBatch, steps: int = 300) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = mean_loss(model, samples)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if loss.item() < 0.01:
            break
    return losses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_overfitted_from_scratch(name: str) -> None:
    model = make_model({name: OBJECTIVES[name]}, seed=1)
    freeze_all_but(model, ["*"])
    train_mode(model)
    losses = overfit(model, make_samples())
    assert losses[0] > 0.4
    assert losses[-1] < 0.02


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_fusion_alone_overfits_another_batch_on_frozen_encoders(name: str) -> None:
    """As a user does it, with trained encoders that are frozen."""
    model = make_model({name: OBJECTIVES[name]}, {**DIFNET, "gate": False})
    train_mode(model)
    overfit(model, make_samples())
    freeze_all_but(model, trained_patterns(model, None))
    train_mode(model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = overfit(model, make_samples(seed=1))
    assert losses[0] > 0.4
    assert losses[-1] < 0.1 * losses[0]
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in frozen:
            assert torch.equal(parameter, frozen[parameter_name]), parameter_name


def test_matched_pairs_alone_would_teach_nothing() -> None:
    """docs/traps.md, 1: always answering "match" must stay as bad as chance."""
    always_match = torch.tensor([[-20.0, 20.0]]).expand(16, 2)
    output = _matching(always_match, 8)
    assert output.losses.mean() > 10
    assert output.report["matched_accuracy"] == 8
    assert output.report["mismatched_accuracy"] == 0
    assert output.report["accuracy"] == 4


@pytest.mark.parametrize("count", [1, 3])
def test_always_mismatched_has_chance_accuracy_for_any_number_drawn(count: int) -> None:
    never_match = torch.tensor([[20.0, -20.0]]).expand(8 * (1 + count), 2)
    assert _matching(never_match, 8).report["accuracy"] == 4


@pytest.mark.parametrize("name", ["itm", "head"])
def test_matched_questions_as_mismatched_ones_cannot_be_learned(name: str) -> None:
    """If negatives included a matched pair, its loss could not fall below ln 2."""
    model = make_model({name: OBJECTIVES[name]})
    freeze_all_but(model, ["*"])
    train_mode(model)
    samples = make_samples()
    samples["mismatched_input"] = list(samples["text_input"])
    assert overfit(model, samples, steps=100)[-1] > 0.6


@pytest.mark.parametrize("name", ["head", "answer", "itm"])
def test_scores_depend_on_the_question_and_on_each_stream(name: str) -> None:
    """docs/traps.md, 3 and 8: the head sees the question, and the second stream is one."""
    model = make_model({name: OBJECTIVES[name]}).eval()
    torch.nn.init.ones_(model.fusion.gate)  # closed at first, when only the grid stream counts
    samples = make_samples()

    def losses(**changed: Any) -> torch.Tensor:
        given: QuestionBatch = {**samples, **changed}  # type: ignore[typeddict-item]
        batch = model._batch(given)
        return model.objectives[name](batch).losses

    with torch.no_grad():
        assert torch.equal(losses(), losses())
        assert not torch.equal(losses(), losses(text_input=samples["text_input"][::-1]))
        for stream in ("grid", "segmentation"):
            images = {**samples["images"], stream: 255 - samples["images"][stream]}
            assert not torch.equal(losses(), losses(images=images))


def test_a_grounded_question_is_read_as_for_matching() -> None:
    model = make_model({"answer": {**HEAD, "grounded": True}}).eval()
    torch.nn.init.ones_(model.fusion.gate)
    batch = model._batch(make_samples())
    read = model.blip.blip.itm_head(batch.grounded_states.flatten(0, 1)[batch.questions.first])
    torch.testing.assert_close(read, model.blip.match(batch.fused, batch.questions))
    (gradient,) = torch.autograd.grad(batch.grounded_states.sum(), batch.fused)
    assert gradient.abs().sum() > 0
    alone = make_model({"answer": HEAD}).eval()
    alone.load_state_dict(model.state_dict())
    samples = make_samples()
    assert not torch.equal(mean_loss(alone, samples), mean_loss(model, samples))


def test_the_head_objective_keeps_the_text_encoder_out_of_the_backward_pass() -> None:
    model = make_model({"head": HEAD})
    freeze_all_but(model, trained_patterns(model, None))
    train_mode(model)
    batch = model._batch(make_samples())
    assert not batch.pair_states.requires_grad
    assert model.objectives["head"](batch).losses.requires_grad


@pytest.mark.parametrize("name", ["head", "answer"])
def test_a_heads_attention_has_dropout_of_its_own(name: str) -> None:
    samples = make_samples()
    plain = make_model({name: {**HEAD, "dropout": 0.5}})
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the only one of the CPU that is fused
        total_loss(plain(samples)).backward()
    dropped = make_model({name: {**HEAD, "attention_dropout": 0.5}})
    assert mean_loss(dropped, samples) != mean_loss(dropped, samples)
    dropped.eval()
    assert mean_loss(dropped, samples) == mean_loss(dropped, samples)


def test_calibration_starts_as_blip_and_corrects_overconfidence() -> None:
    """Without it, fused tokens drift away from those that BLIP's question matching can read."""
    grid_only = {"name": "grid_only"}
    plain = make_model({"itm": {}}, grid_only).eval()
    model = make_model({"itm": {"calibrated": True}}, grid_only).eval()
    model.blip.blip.itm_head.weight.data *= 200
    plain.load_state_dict(model.state_dict(), strict=False)
    samples = make_samples()
    first = mean_loss(model, samples)
    torch.testing.assert_close(first, mean_loss(plain, samples))
    assert first > 1.0
    freeze_all_but(model, ["objectives.itm.*"])
    assert overfit(model, samples, steps=200)[-1] < 0.75


def test_answers_outside_the_vocabulary_have_no_loss_and_are_counted() -> None:
    model = make_model({"answer": HEAD}).eval()
    samples = make_samples()
    samples["answer"] = ["zebra", None, *samples["answer"][2:]]
    report = model(samples).report
    assert report["answer_outside_vocabulary"] == 2
    samples["answer"] = ["zebra"] * 8
    output = model(samples)
    assert total_loss(output) == 0
    assert output.report["answer_accuracy"] == 0


def test_objectives_mix_by_their_weights() -> None:
    objectives = {"itm": {"weight": 0.25}, "answer": {**HEAD, "weight": 2.0}}
    model = make_model(objectives).eval()
    samples = make_samples()
    with torch.no_grad():
        output = model(samples)
    report = output.report
    expected = 0.25 * report["itm_loss"] + 2.0 * report["answer_loss"]
    torch.testing.assert_close(total_loss(output), expected)


def test_questions_of_one_image_share_its_encoding() -> None:
    """A batch with shared images has the losses of its single questions."""
    model = make_model({"itm": {}, "answer": HEAD}).eval()
    samples = make_samples()
    with torch.no_grad():
        together = model(samples).report
        apart = [model(_only(samples, q)).report for q in range(8)]
    for name, value in together.items():
        torch.testing.assert_close(value, sum(report[name] for report in apart), atol=1e-4, rtol=0)


def _only(samples: QuestionBatch, q: int) -> QuestionBatch:
    image = int(samples["image_index"][q])
    return {
        "images": {
            "grid": samples["images"]["grid"][image : image + 1],
            "segmentation": samples["images"]["segmentation"][image : image + 1],
        },
        "image_index": torch.zeros(1, dtype=torch.long),
        "text_input": [samples["text_input"][q]],
        "mismatched_input": [samples["mismatched_input"][q]],
        "answer": [samples["answer"][q]],
        "ids": [samples["ids"][q]],
        "global_size": 1,
    }


def test_training_without_objectives_lists_the_registered_ones() -> None:
    with pytest.raises(
        UserError, match=r"model\.objectives is empty.*: answer, caption, head, itm, vqa, words\."
    ):
        make_model({})


def test_answering_needs_no_objectives() -> None:
    config = typed(PnpVqaFusionConfig, model_section({}), "model")
    model = PnpVqaFusion(config, load_weights=False, answering=True)
    assert model.metrics == []
    assert len(model.objectives) == 0


def test_distillation_keeps_the_fused_matching_near_blips_own() -> None:
    """With a closed gate it costs nothing; trained with much of it, attention moves less."""
    moved = {}
    for weight in (0.0, 30.0):
        itm = {"distillation": weight}
        model = make_model({"itm": itm}, {**DIFNET, "gate": True}, seed=1)
        plain = make_model({"itm": {}}, {**DIFNET, "gate": True}, seed=1)
        assert torch.allclose(mean_loss(model, make_samples()), mean_loss(plain, make_samples()))
        train_mode(model)
        overfit(model, make_samples(), steps=40)
        tokens = model._batch(make_samples())
        moved[weight] = (tokens.fused - tokens.unfused).norm().item()
    assert 0 < moved[30.0] < 0.7 * moved[0.0]


def test_a_distilled_block_that_there_is_not_is_an_error() -> None:
    with pytest.raises(UserError, match=r"itm\.distilled_block is 9, .* blocks 0 to 1"):
        make_model({"itm": {"distillation": 1.0, "distilled_block": 9}})
