"""Heat maps equal those by plain autograd, in any batch, with a graph from their block on."""

import re
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check
from lavis_ext.config.typed import typed
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig
from lavis_ext.models.pnp_vqa.question_matching import (
    MatchedQuestions,
    QuestionMatchingConfig,
    check_block_num,
    match_questions,
)
from tests import tiny

LAYERS = 3
BLOCKS = range(LAYERS - 1)
"""In the last block words get no gradient, because only [ENC] reaches the score."""
QUESTIONS = [
    *tiny.QUESTIONS,
    "what color is the large thing to the left of the red circle?",
    "red?",
]
IMAGE_INDEX = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])


def build(**changes: Any) -> BlipEncoder:
    section = {**tiny.BLIP, "text_layers": LAYERS, **changes}
    torch.manual_seed(0)
    encoder = BlipEncoder(typed(BlipEncoderConfig, section, "model.blip")).eval()
    with torch.no_grad():  # at initial weights attention is flat and all gradients alike
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def encoder() -> BlipEncoder:
    return build()


def make_tokens(patches: int = 16, width: int = 32) -> Tensor:
    return torch.randn(3, 1 + patches, width, generator=torch.Generator().manual_seed(1))


def match(
    encoder: BlipEncoder,
    tokens: Tensor,
    block_num: int = 1,
    rows: list[int] | None = None,
) -> MatchedQuestions:
    """Matches of the questions ``rows``, all of them by default."""
    rows = list(range(len(QUESTIONS))) if rows is None else rows
    return match_questions(
        encoder,
        tokens,
        IMAGE_INDEX[rows],
        [QUESTIONS[row] for row in rows],
        QuestionMatchingConfig(block_num=block_num),
    )


def plain(
    encoder: BlipEncoder, tokens: Tensor, block_num: int, question: str, image: int
) -> tuple[float, Tensor]:
    """Score and heat by autograd over the whole network, head by head and word by word."""
    input_ids, mask = encoder.tokenize([question])
    input_ids[:, 0] = encoder.enc_token_id
    output = encoder.blip.text_encoder(
        input_ids=input_ids,
        attention_mask=mask,
        encoder_hidden_states=tokens[image : image + 1].clone().requires_grad_(),
        output_attentions=True,
    )
    logits = encoder.blip.itm_head(output.last_hidden_state[:, 0])[0]
    attention = output.cross_attentions[block_num]
    (gradient,) = torch.autograd.grad(logits[1], attention)
    maps = []
    for word in range(1, input_ids.shape[1] - 1):
        heads = range(attention.shape[1])
        terms = [attention[0, h, word, 1:] * gradient[0, h, word, 1:].relu() for h in heads]
        maps.append(sum(terms) / len(heads))
    score = logits.exp()[1] / logits.exp().sum()
    return score.item(), sum(maps).detach() / len(maps)


def assert_same(ours: MatchedQuestions, theirs: MatchedQuestions, tolerance: float = 1e-5) -> None:
    """Heat is compared relative to its maximum, since gradients are small."""
    torch.testing.assert_close(ours.scores, theirs.scores, atol=tolerance, rtol=0)
    top = theirs.heat.amax()
    torch.testing.assert_close(ours.heat / top, theirs.heat / top, atol=tolerance, rtol=0)


@pytest.mark.parametrize("block_num", BLOCKS)
@pytest.mark.parametrize(("heads", "patches"), [(2, 16), (4, 15)])
def test_equals_plain_autograd(block_num: int, heads: int, patches: int) -> None:
    encoder, tokens = build(text_heads=heads), make_tokens(patches)
    expected = [
        plain(encoder, tokens, block_num, question, int(image))
        for question, image in zip(QUESTIONS, IMAGE_INDEX, strict=True)
    ]
    scores, heat = zip(*expected, strict=True)
    ours = match(encoder, tokens, block_num)
    assert ours.heat.shape == (len(QUESTIONS), patches)
    assert ours.heat.dtype == torch.float32
    assert_same(ours, MatchedQuestions(torch.tensor(scores), torch.stack(heat)))
    assert (ours.heat.amax(dim=1) > 0).any()
    assert ours.scores.std() > 1e-3


def test_a_batch_of_16_equals_one_at_a_time(encoder: BlipEncoder) -> None:
    tokens = make_tokens()
    rows = [*range(10), *range(6)]
    together = match(encoder, tokens, rows=rows)
    alone = [match(encoder, tokens, rows=[row]) for row in rows]
    scores, heat = zip(*alone, strict=True)
    assert_same(together, MatchedQuestions(torch.cat(scores), torch.cat(heat)))


def test_a_question_looks_at_its_own_image(encoder: BlipEncoder) -> None:
    tokens = make_tokens()
    before = match(encoder, tokens)
    tokens[2] += 1
    after = match(encoder, tokens)
    changed = (before.heat != after.heat).any(dim=1)
    assert torch.equal(changed, IMAGE_INDEX == 2)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("block_num", BLOCKS)
def test_no_graph_before_the_block(block_num: int, trainable: bool) -> None:
    encoder = build().requires_grad_(trainable)
    tokens = make_tokens().requires_grad_()
    layers = encoder.blip.text_encoder.encoder.layer
    cross_attention = layers[block_num].crossattention.self
    watched = {f"layer {number}": layer.output for number, layer in enumerate(layers)}
    watched |= {"query": cross_attention.query, "value": cross_attention.value}
    has_graph = {}
    with ExitStack() as hooks:
        for name, module in watched.items():

            def watch(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
                output = output[0] if isinstance(output, tuple) else output
                has_graph[name] = output.requires_grad

            hooks.enter_context(module.register_forward_hook(watch))
        matched = match(encoder, tokens, block_num)
    expected = {f"layer {number}": number >= block_num for number in range(LAYERS)}
    assert has_graph == expected | {"query": False, "value": False}
    assert not matched.scores.requires_grad
    assert not matched.heat.requires_grad
    assert tokens.grad is None
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_call_leaves_no_state(encoder: BlipEncoder) -> None:
    tokens = make_tokens()
    with torch.no_grad():
        match(encoder, tokens)
        assert not torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in encoder.modules())
    graph = encoder.match(tokens.requires_grad_(), encoder.pack(QUESTIONS[:3]))
    (gradient,) = torch.autograd.grad(graph.sum(), tokens)
    assert gradient.abs().amax() > 0


@contextmanager
def inference_after_a_pass(encoder: BlipEncoder) -> Any:
    """Autocast has cached the weights as inference tensors by then, which no graph may contain."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        encoder.match(make_tokens(), encoder.pack(QUESTIONS[:3]))
        yield


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
def test_the_grad_mode_of_the_caller_does_not_matter(context: Any, trainable: bool) -> None:
    encoder = build().requires_grad_(trainable)
    expected = match(encoder, make_tokens())
    with context():
        found = match(encoder, make_tokens() * 1.0)
    assert_same(found, expected, tolerance=0)


@pytest.mark.parametrize("trainable", [False, True])
def test_autocast_gives_nearly_the_same_heat_in_float32(trainable: bool) -> None:
    encoder = build().requires_grad_(trainable)
    exact = match(encoder, make_tokens())
    with inference_after_a_pass(encoder):
        rounded = match(encoder, make_tokens())
    assert rounded.heat.dtype == rounded.scores.dtype == torch.float32
    similar = torch.nn.functional.cosine_similarity(rounded.heat.flatten(), exact.heat.flatten(), 0)
    assert similar > 0.98
    assert not torch.equal(rounded.heat, exact.heat)
    torch.testing.assert_close(rounded.scores, exact.scores, atol=0.05, rtol=0)


def test_the_callers_autocast_is_unchanged() -> None:
    encoder = build().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        match(encoder, make_tokens())
        encoder.match(make_tokens(), encoder.pack(QUESTIONS[:3])).sum().backward()
    queries = encoder.blip.text_encoder.encoder.layer[0].crossattention.self.query
    assert queries.weight.grad is not None


@pytest.mark.parametrize("first_token", ["enc", "cls"])
def test_scores_are_those_of_match(first_token: str) -> None:
    encoder, tokens = build(first_token=first_token), make_tokens()
    logits = encoder.match(tokens[IMAGE_INDEX], encoder.pack(QUESTIONS))
    torch.testing.assert_close(match(encoder, tokens).scores, logits.softmax(dim=1)[:, 1])


def test_a_question_without_words_has_no_heat(encoder: BlipEncoder) -> None:
    config = QuestionMatchingConfig(block_num=1)
    found = match_questions(encoder, make_tokens(), torch.tensor([0, 1]), ["", "red?"], config)
    assert found.heat[0].eq(0).all()
    assert found.heat[1].amax() > 0


@pytest.mark.parametrize("block_num", [-1, LAYERS - 1, LAYERS])
def test_block_num_out_of_range_names_the_key_and_the_range(
    block_num: int, encoder: BlipEncoder
) -> None:
    message = rf"model\.question_matching\.block_num is {block_num}.* 0 to 1"
    with pytest.raises(UserError, match=message):
        match(encoder, make_tokens(), block_num)
    with pytest.raises(UserError, match=rf"model\.here\.block_num is {block_num}"):
        check_block_num(QuestionMatchingConfig(block_num=block_num), encoder.config, "model.here")


def test_a_text_encoder_of_one_block_is_an_error() -> None:
    with pytest.raises(UserError, match=r"model\.here needs.*at least 2 blocks.*text_layers is 1"):
        check_block_num(
            QuestionMatchingConfig(block_num=0), BlipEncoderConfig(text_layers=1), "model.here"
        )


def test_the_default_block_is_pnp_vqas() -> None:
    check(QuestionMatchingConfig(), "model.question_matching")
    check_block_num(QuestionMatchingConfig(), BlipEncoderConfig(), "model.question_matching")
    assert QuestionMatchingConfig().block_num == 7


def test_heat_that_is_not_finite_names_its_question(encoder: BlipEncoder) -> None:
    tokens = make_tokens()
    tokens[1, 3] = torch.nan
    with pytest.raises(UserError, match=rf"'{re.escape(QUESTIONS[2])}'.*not finite.*weights"):
        match(encoder, tokens)
