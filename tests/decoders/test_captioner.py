"""Captions depend on the chosen patches, are distinct, limited, and the same in any batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.decoders.blip_captioner import (
    BlipCaptioner,
    CaptionerConfig,
    Captions,
    SamplingConfig,
)
from tests import tiny

QUESTIONS = [f"0{number}930152" for number in range(8)]
IMAGE_INDEX = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
PATCHES = 16
SIZES = tiny.BLIP_SIZES
SAMPLING = {
    "num_captions": 3,
    "min_length": 6,
    "max_length": 12,
    "samples_per_pass": 64,
    "patches": {"num_patches": 4},
}


def build(seed: int = 0, sampling: dict[str, Any] | None = None, **changes: Any) -> BlipCaptioner:
    section = {**SIZES, "sampling": SAMPLING | (sampling or {}), **changes}
    torch.manual_seed(seed)
    captioner = BlipCaptioner(typed(CaptionerConfig, section, "model.captioner")).eval()
    if captioner.load_report is None:
        # Transformers' small initial weights would make every word as likely as any other.
        with torch.no_grad():
            for name, parameter in captioner.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(10 if "embeddings" in name else 5)
    return captioner


@pytest.fixture(scope="module")
def captioner() -> BlipCaptioner:
    return build()


@pytest.fixture(scope="module")
def tokens(captioner: BlipCaptioner) -> Tensor:
    with torch.no_grad():
        return captioner.encode_image(images())


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    side = tiny.SIDE
    return torch.randint(256, (3, 3, side, side), dtype=torch.uint8, generator=generator)


def heat(questions: int = len(QUESTIONS)) -> Tensor:
    return torch.rand(questions, PATCHES, generator=torch.Generator().manual_seed(2))


def say(
    captioner: BlipCaptioner, tokens: Tensor, rows: list[int] | None = None, **changes: Any
) -> Captions:
    """Captions of the questions ``rows``, all of them by default."""
    rows = list(range(len(QUESTIONS))) if rows is None else rows
    return captioner.caption(
        tokens,
        IMAGE_INDEX[rows],
        heat()[rows],
        [QUESTIONS[row] for row in rows],
        replace(captioner.config.sampling, **changes),
    )


def rigged(word: str) -> BlipCaptioner:
    """A captioner that only generates ``word``."""
    captioner = build()
    with torch.no_grad():
        bias = captioner.blip.text_decoder.cls.predictions.bias
        bias[captioner.tokenizer.convert_tokens_to_ids(word)] = 1e4
    return captioner


def test_each_question_gets_distinct_captions_without_prompt_or_marks(
    captioner: BlipCaptioner, tokens: Tensor
) -> None:
    captions = say(captioner, tokens)
    for texts in captions.texts:
        assert len(texts) == len(set(texts)) == 3
        assert all(text and "[" not in text and "picture of" not in text for text in texts)
    assert len({text for texts in captions.texts for text in texts}) == 24


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_neither_batch_nor_order_nor_passes_change_a_caption(
    top_p: float, captioner: BlipCaptioner, tokens: Tensor
) -> None:
    whole = say(captioner, tokens, top_p=top_p)
    alone = [say(captioner, tokens, [row], top_p=top_p) for row in range(len(QUESTIONS))]
    assert [each.texts[0] for each in alone] == whole.texts
    assert [each.repeated[0] for each in alone] == whole.repeated
    order = [5, 0, 7, 3, 6, 1, 4, 2]
    shuffled = say(captioner, tokens, order, top_p=top_p)
    assert shuffled.texts == [whole.texts[row] for row in order]
    for size in (1, 5):
        assert say(captioner, tokens, top_p=top_p, samples_per_pass=size) == whole
    torch.manual_seed(99)
    assert say(captioner, tokens, top_p=top_p) == whole


def test_a_caption_that_ends_early_does_not_change_the_others(
    captioner: BlipCaptioner, tokens: Tensor
) -> None:
    # With an even chance of [SEP] at each step, lengths differ much within a batch.
    ending = build()
    with torch.no_grad():
        ending.blip.text_decoder.cls.predictions.bias[ending.tokenizer.sep_token_id] = 6.0
    whole = say(ending, tokens, min_length=0, max_length=20)
    lengths = {len(text.split()) for texts in whole.texts for text in texts}
    assert min(lengths) <= 2
    assert max(lengths) >= 5
    alone = [say(ending, tokens, [row], min_length=0, max_length=20) for row in range(8)]
    assert [each.texts[0] for each in alone] == whole.texts


def test_finished_captions_leave_the_batch_and_patches_are_projected_once(tokens: Tensor) -> None:
    ending = build()
    decoder = ending.blip.text_decoder
    with torch.no_grad():
        decoder.cls.predictions.bias[ending.tokenizer.sep_token_id] = 6.0
    rows: list[int] = []
    projected: list[int] = []
    decoder.cls.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    decoder.bert.encoder.layer[0].crossattention.self.key.register_forward_pre_hook(
        lambda _, args: projected.append(len(args[0]))
    )
    captions = say(ending, tokens, min_length=0, max_length=20, max_tries=1)
    assert sum(map(len, captions.texts)) + sum(captions.repeated) == rows[0] == 24
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 12
    # 24 captions of 4 patches each, of 3 images with 16 patches.
    (different,) = projected
    assert different <= 3 * PATCHES


def test_more_captions_extend_fewer(captioner: BlipCaptioner, tokens: Tensor) -> None:
    few, many = (say(captioner, tokens, num_captions=count).texts for count in (2, 6))
    assert [texts[:2] for texts in many] == few


def test_the_seed_changes_captions(captioner: BlipCaptioner, tokens: Tensor) -> None:
    assert say(captioner, tokens, seed=1).texts != say(captioner, tokens).texts


@pytest.mark.parametrize(("filters", "allowed"), [({"top_k": 5}, 5), ({"top_p": 0.5}, None)])
def test_words_are_drawn_with_the_captioner_s_probabilities(
    filters: dict[str, Any], allowed: int | None, captioner: BlipCaptioner, tokens: Tensor
) -> None:
    many = 3000
    length = len(captioner.prompt_ids) + 1
    captions = captioner.caption(
        tokens,
        torch.zeros(many, dtype=torch.int64),
        torch.ones(many, PATCHES),
        [str(number) for number in range(many)],
        typed(
            SamplingConfig,
            {
                "num_captions": 1,
                "min_length": length,
                "max_length": length,
                "samples_per_pass": 1000,
                "patches": {"choose": "all"},
                "top_k": 0,
                **filters,
            },
            "sampling",
        ),
    )
    prompt = torch.tensor([captioner.prompt_ids])
    with torch.no_grad():
        logits = captioner.blip.text_decoder(
            input_ids=prompt, encoder_hidden_states=tokens[:1, 1:]
        ).logits[0, -1]
    refused = [*captioner.not_words, captioner.tokenizer.sep_token_id]
    logits[refused] = -torch.inf
    chances, words = logits.softmax(0).sort(descending=True)
    if allowed is None:
        allowed = int((chances.cumsum(0) < 0.5).sum()) + 1
    chances = (chances[:allowed] / chances[:allowed].sum()).double()
    names = captioner.tokenizer.convert_ids_to_tokens(words[:allowed].tolist())
    said = [texts[0] for texts in captions.texts]
    found = [said.count(name) for name in names]
    assert sum(found) == many, "nothing but the words that the filter keeps"
    expected = chances / chances.sum() * many
    assert stats.chisquare(found, expected.numpy()).pvalue > 0.001


def test_every_step_draws_new_numbers(tokens: Tensor) -> None:
    indifferent = build()
    with torch.no_grad():
        indifferent.blip.text_decoder.cls.predictions.transform.LayerNorm.weight.zero_()
    captions = say(indifferent, tokens, top_k=0, min_length=12)
    # Of some 650 words, all as likely as each other, few come twice among 8.
    kinds = [len(set(text.split())) for texts in captions.texts for text in texts]
    assert sum(kinds) / len(kinds) > 4


def test_a_penalty_on_repetition_is_obeyed(tokens: Tensor) -> None:
    captions = say(rigged("red"), tokens, repetition_penalty=1e6)
    # Without it they are 8 times "red".
    assert all(text.split().count("red") < 5 for texts in captions.texts for text in texts)


def test_generation_equals_reading_the_whole_text_at_every_step(
    captioner: BlipCaptioner, tokens: Tensor
) -> None:
    said = captioner.caption(
        tokens,
        torch.tensor([1]),
        torch.ones(1, PATCHES),
        ["1"],
        typed(
            SamplingConfig,
            SAMPLING | {"num_captions": 1, "top_k": 1, "patches": {"choose": "all"}},
            "sampling",
        ),
    ).texts[0][0]
    ids = list(captioner.prompt_ids)
    end = captioner.tokenizer.sep_token_id
    while len(ids) < 12 and ids[-1] != end:
        with torch.no_grad():
            scores = captioner.blip.text_decoder(
                input_ids=torch.tensor([ids]), encoder_hidden_states=tokens[1:2, 1:]
            ).logits[0, -1]
        scores[captioner.not_words] = -torch.inf
        if len(ids) < 6:
            scores[end] = -torch.inf
        ids.append(int(scores.argmax()))
    expected = captioner.tokenizer.decode(ids[len(captioner.prompt_ids) :])
    assert said == expected.removesuffix("[SEP]").strip()


def test_a_caption_sees_the_drawn_patches_of_its_image_and_no_other(
    captioner: BlipCaptioner, tokens: Tensor
) -> None:
    hot = torch.zeros(len(QUESTIONS), PATCHES)
    hot[:, [2, 3, 9, 10]] = 1.0
    before = captioner.caption(tokens, IMAGE_INDEX, hot, QUESTIONS)
    elsewhere = tokens.clone()
    elsewhere[:, [0, 1, 2, 5, 16]] += 3.0  # the class token and patches without heat
    assert captioner.caption(elsewhere, IMAGE_INDEX, hot, QUESTIONS) == before
    first_image = tokens.clone()
    first_image[0, 1 + 9] += 3.0
    after = captioner.caption(first_image, IMAGE_INDEX, hot, QUESTIONS)
    changed = [a != b for a, b in zip(after.texts, before.texts, strict=True)]
    assert changed == (IMAGE_INDEX == 0).tolist()


def test_a_captioner_that_repeats_itself_ends_and_counts_repeats(tokens: Tensor) -> None:
    captions = say(rigged("red"), tokens, num_captions=5, max_tries=3)
    assert captions.texts == [["red " * 7 + "red"]] * len(QUESTIONS)
    # Of 5 samples 4 repeat the first, and they do it again in two more tries.
    assert captions.repeated == [12] * len(QUESTIONS)


def test_a_captioner_without_output_ends_and_counts_repeats(tokens: Tensor) -> None:
    captions = say(rigged("[SEP]"), tokens, min_length=0, num_captions=2, max_tries=2)
    assert captions.texts == [[]] * len(QUESTIONS)
    assert captions.repeated == [4] * len(QUESTIONS)


def test_a_repeated_caption_is_drawn_again(captioner: BlipCaptioner, tokens: Tensor) -> None:
    # Three words to choose from, at one place: the first try of six samples can't bring three.
    short = {"max_length": 5, "min_length": 5, "top_k": 3, "num_captions": 3}
    once = say(captioner, tokens, max_tries=1, **short)
    often = say(captioner, tokens, max_tries=40, **short)
    assert sum(once.repeated) > 0
    assert sum(map(len, once.texts)) == 24 - sum(once.repeated)
    assert sum(map(len, often.texts)) > sum(map(len, once.texts))
    for first, later in zip(once.texts, often.texts, strict=True):
        assert set(first) <= set(later)


def test_saved_weights_give_the_same_captions(
    captioner: BlipCaptioner, tokens: Tensor, tmp_path: Path
) -> None:
    captioner.blip.save_pretrained(tmp_path)
    loaded = build(seed=5, weights=str(tmp_path))
    assert loaded.load_report is not None
    assert loaded.load_report.missing == ()
    assert torch.equal(loaded.encode_image(images()), tokens)
    assert say(loaded, tokens) == say(captioner, tokens)


def test_weights_of_another_width_are_errors(captioner: BlipCaptioner, tmp_path: Path) -> None:
    captioner.blip.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"BLIP captioner .* of another shape"):
        build(weights=str(tmp_path), text_mlp=32)


def test_loss_is_the_mean_over_words_and_end(captioner: BlipCaptioner, tokens: Tensor) -> None:
    texts = ["red circle", "a blue square on the left"]
    states = tokens[:2, 1:]
    with torch.no_grad():
        together = captioner.loss(states, texts, None)
        for row, text in enumerate(texts):
            words = captioner.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*captioner.prompt_ids, *words, captioner.tokenizer.sep_token_id]])
            labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(captioner.prompt_ids), -100)
            transformers_loss = captioner.blip.text_decoder(
                input_ids=ids, encoder_hidden_states=states[row : row + 1], labels=labels
            ).loss
            torch.testing.assert_close(together[row], transformers_loss, atol=1e-5, rtol=1e-5)


def test_loss_does_not_see_masked_patches(captioner: BlipCaptioner, tokens: Tensor) -> None:
    texts = ["red circle", "blue square"]
    mask = torch.ones(2, PATCHES, dtype=torch.int64)
    mask[1, 5:] = 0
    with torch.no_grad():
        masked = captioner.loss(tokens[:2, 1:], texts, mask)
        cut = captioner.loss(tokens[1:2, 1:6], texts[1:], None)
        whole = captioner.loss(tokens[:2, 1:], texts, None)
    torch.testing.assert_close(masked[1:], cut, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked[:1], whole[:1], atol=1e-5, rtol=1e-5)
    assert abs(float(masked[1] - whole[1])) > 1e-3


def test_long_captions_are_cut_in_training(tokens: Tensor) -> None:
    short = build(max_caption_tokens=8)
    with torch.no_grad():
        long = short.loss(tokens[:1, 1:], ["red circle left of a blue square"], None)
        cut = short.loss(tokens[:1, 1:], ["red circle left"], None)
    torch.testing.assert_close(long, cut)


def test_training_by_the_loss_changes_the_captions(tokens: Tensor) -> None:
    learner = build(sampling={"num_captions": 1, "top_k": 1, "min_length": 0}).train()
    texts = ["red circle", "a blue square on the left", "yes"]
    optimizer = torch.optim.Adam(learner.blip.text_decoder.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        learner.loss(tokens[:, 1:], texts, None).mean().backward()
        optimizer.step()
    learner.eval()
    everywhere = typed(
        SamplingConfig,
        {"num_captions": 1, "top_k": 1, "min_length": 0, "patches": {"choose": "all"}},
        "sampling",
    )
    captions = learner.caption(
        tokens, torch.arange(3), torch.ones(3, PATCHES), ["a", "b", "c"], everywhere
    )
    assert [said[0] for said in captions.texts] == texts


def test_heat_of_another_grid_is_an_error(captioner: BlipCaptioner, tokens: Tensor) -> None:
    with pytest.raises(UserError, match=r"heat maps have 25 patches.* 16.*model\.captioner"):
        captioner.caption(tokens, torch.tensor([0]), torch.ones(1, 25), ["1"])


def test_bad_heat_and_too_many_patches_are_errors(captioner: BlipCaptioner, tokens: Tensor) -> None:
    with pytest.raises(UserError, match="question 17 "):
        captioner.caption(tokens, torch.tensor([0]), torch.full((1, 16), torch.nan), ["17"])
    too_many = replace(captioner.config.sampling.patches, num_patches=17)
    with pytest.raises(UserError, match=r"model\.captioner\.sampling\.patches\.num_patches is 17"):
        say(captioner, tokens, patches=too_many)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"min_length": 13}}, r"sampling\.min_length is 13.*at most"),
        ({"sampling": {"max_length": 49}}, r"sampling\.max_length is 49.*48 position"),
        ({"max_caption_tokens": 60}, r"max_caption_tokens is 60.*48 position"),
        ({"sampling": {"min_length": 0, "max_length": 4}}, r"sampling\.max_length is 4.*has 4 tok"),
        ({"vision_heads": 3}, r"vision_heads is 3.*divide"),
        ({"vocab_size": 659}, r"vocab_size is 659.*needs 660"),
        ({"sampling": {"top_p": 0.0}}, r"sampling\.top_p is 0\.0.*above 0"),
        ({"sampling": {"max_tries": 0}}, r"sampling\.max_tries is 0.*at least 1"),
    ],
)
def test_wrong_configs_name_their_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"model\.captioner\." + message):
        build(**changes)


def test_sampling_options_of_a_call_are_checked(captioner: BlipCaptioner, tokens: Tensor) -> None:
    with pytest.raises(UserError, match=r"model\.captioner\.sampling\.max_length is 49"):
        say(captioner, tokens, max_length=49)


def test_images_of_another_size_are_errors(captioner: BlipCaptioner) -> None:
    with pytest.raises(UserError, match="40x32"):
        captioner.encode_image(torch.zeros(1, 3, 40, 32))
