"""Packed batches have the loss and gradients of single questions in transformers' forward passes.

The reference is the straightforward step of the benchmarks: it encodes and fuses the image again
for each pair, with the forward passes of transformers and torch.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.backends import cuda as attention_backends
from torch.nn import functional as F

from benchmarks.straightforward import STRAIGHTFORWARD, Ways, straightforward_loss
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.runners.freezing import freeze_all_but, train_mode
from tests.tiny import ANSWERS, HEAD, QUESTIONS, SIDE, make_model

LONG = "is there a small red circle to the left of the large blue square that is above the star?"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "itm": {"weight": 0.7, "calibrated": True},
    "head": {**HEAD, "layers": 2},
    "answer": {**HEAD, "layers": 2, "weight": 0.4},
}
MIXTURES = [*([name] for name in OBJECTIVES), list(OBJECTIVES)]


def batch(index: list[int], mismatched: int = 2, seed: int = 0) -> QuestionBatch:
    """Questions about the images ``index``; some have the same text, and one is long."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(
        0, 256, (max(index) + 1, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8
    )
    texts = [*QUESTIONS, LONG]
    count = len(index)
    return {
        "images": {
            "grid": pictures,
            "segmentation": pictures.flip(-1),
        },
        "image_index": torch.tensor(index),
        "text_input": [texts[(4 * q + seed) % 9] for q in range(count)],
        "mismatched_input": [texts[(2 * q + 3) % 9] for q in range(count * mismatched)],
        "answer": ["zebra", *(ANSWERS[q % len(ANSWERS)] for q in range(1, count))],
        "ids": [str(q) for q in range(count)],
        "global_size": count,
    }


def model_with(names: list[str], trainable: list[str]) -> PnpVqaFusion:
    model = make_model({name: OBJECTIVES[name] for name in names}, seed=1)
    with torch.no_grad():
        model.fusion.gate.fill_(0.5)  # closed at first, when nothing behind it has a gradient
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)  # at initial weights attention is flat
    freeze_all_but(model, trainable)
    train_mode(model)
    return model


def gradients(model: PnpVqaFusion, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("trainable", [["fusion.*", "objectives.*"], ["*"]])
@pytest.mark.parametrize("names", MIXTURES)
@pytest.mark.parametrize(
    "index",
    [
        [0, 0, 0, 0, 1, 1, 2, 2, 2],
        [2, 0, 1, 0, 2, 2],  # in no order
        [0] * 12 + [1] + [2] + [3] + [4],  # one image with many: it takes several rows
    ],
)
def test_loss_and_every_gradient_equal_one_question_at_a_time(
    index: list[int], names: list[str], trainable: list[str]
) -> None:
    model = model_with(names, trainable)
    samples = batch(index)
    count = len(samples["text_input"])
    loss, expected = total_loss(model(samples)), straightforward_loss(model, samples)
    loss, expected = loss / count, expected / count
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(model, loss), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if n.startswith("fusion.")} == {
        n for n, _ in model.named_parameters() if n.startswith("fusion.")
    }
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("ways", [Ways(fused_attention=True), Ways(seen_once=True)])
def test_partly_optimized_steps_have_the_straightforward_loss_and_gradients(ways: Ways) -> None:
    model, samples = model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"]), batch([0, 0, 1])
    count = len(samples["text_input"])
    both = (ways, STRAIGHTFORWARD)
    losses = [straightforward_loss(model, samples, each) / count for each in both]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    ours, theirs = (gradients(model, loss) for loss in losses)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_the_straightforward_step_materializes_attention_and_separates_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused: list[bool] = []
    attention = F.scaled_dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        fused.append(
            attention_backends.flash_sdp_enabled() or attention_backends.mem_efficient_sdp_enabled()
        )
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    model, samples = model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"]), batch([0, 0, 1])
    encoded: list[int] = []
    model.streams["segmentation"].image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    straightforward_loss(model, samples)
    assert not any(fused)
    assert len(encoded) == 3 * 3, "once for each pair"
    fused.clear()
    model(samples)
    assert fused
    assert all(fused)
    assert len(encoded) == 3 * 3 + 1


def test_each_question_attends_to_the_tokens_of_its_mask() -> None:
    encoder = model_with(["itm"], ["*"]).blip.eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 17, 32, generator=generator)
    mask = torch.rand(5, 17, generator=generator) < 0.5
    index = torch.tensor([1, 0, 1, 1, 0])
    with torch.no_grad():
        together = encoder.match(tokens, encoder.pack(QUESTIONS[:5], index, 2), token_mask=mask)
        for q, (question, image) in enumerate(zip(QUESTIONS, index.tolist(), strict=False)):
            alone = encoder.match(tokens[image, mask[q]][None], encoder.pack([question]))
            torch.testing.assert_close(together[q], alone[0], atol=1e-5, rtol=1e-5)


def test_keys_and_values_are_computed_once_an_image_and_texts_once() -> None:
    model, samples = (
        model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"]),
        batch([0] * 5 + [1] * 5 + [2] * 4),
    )
    counted: dict[str, list[tuple[int, ...]]] = {"keys": [], "texts": []}

    def count(name: str) -> Any:
        return lambda _module, inputs, _output: counted[name].append(tuple(inputs[0].shape))

    text = model.blip.blip.text_encoder
    text.encoder.layer[0].crossattention.self.key.register_forward_hook(count("keys"))
    text.encoder.layer[0].attention.self.key.register_forward_hook(count("texts"))
    model(samples)
    assert counted["keys"] == [(3, 17, 32)]
    # Matched and mismatched pairs in one pass; then each distinct text alone, for both heads.
    matching, *alone = counted["texts"]
    assert matching[0] == 3
    distinct = len({*samples["text_input"], *samples["mismatched_input"]})
    assert distinct == 9
    assert sum(rows * places for rows, places, _ in alone) < 9 * 30 < matching[0] * matching[1]


def asked(questions: list[int], words: int) -> QuestionBatch:
    """A batch with these numbers of questions and words."""
    samples = batch([image for image, count in enumerate(questions) for _ in range(count)], 1)
    for name in ("text_input", "mismatched_input"):
        texts = [" ".join(LONG.split()[: 1 + (place % words)]) for place in range(sum(questions))]
        samples[name] = texts  # type: ignore[literal-required]
    return samples


def test_batches_of_varying_questions_need_no_compiling_after_the_first() -> None:
    model, plain = (model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"]) for _ in range(2))
    torch.compiler.reset()
    model.compile_parts("eager")
    total_loss(model(asked([4, 4], 5))).backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for questions, words in (([4, 3], 5), ([3, 4], 4), ([4, 1], 6), ([3, 3], 7), ([4, 4], 3)):
            samples = asked(questions, words)
            count = len(samples["text_input"])
            loss = total_loss(model(samples)) / count
            expected = total_loss(plain(samples)) / count
            torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
            ours, theirs = gradients(model, loss), gradients(plain, expected)
            for name, gradient in theirs.items():
                torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_a_new_length_is_compiled_once() -> None:
    from torch._dynamo.utils import counters

    model = model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"])
    torch.compiler.reset()
    model.compile_parts("eager")
    compiled = []
    for questions in ([4, 4], [12, 12], [11, 12], [4, 3]):
        counters.clear()
        total_loss(model(asked(questions, 5))).backward()
        compiled.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    assert compiled[0] > 0
    assert compiled[1] > 0, "rows twice as long"
    assert compiled[2:] == [0, 0]


def test_names_of_weights_are_the_same_compiled() -> None:
    model = model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"])
    names = list(model.state_dict())
    model.compile_parts("eager")
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_autocast_gives_nearly_the_same_loss_and_gradients(compiled: bool) -> None:
    model, samples = (
        model_with(list(OBJECTIVES), ["fusion.*", "objectives.*"]),
        batch([0, 0, 0, 1, 1, 2]),
    )
    count = len(samples["text_input"])
    expected = total_loss(model(samples)) / count
    theirs = gradients(model, expected)
    if compiled:
        torch.compiler.reset()
        model.compile_parts("aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total_loss(model(samples)) / count
    ours = gradients(model, loss)
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)
    assert not torch.equal(loss, expected)
    together = [torch.cat([g[n].flatten() for n in sorted(theirs)]) for g in (ours, theirs)]
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())
    assert F.cosine_similarity(*together, dim=0) > 0.99
