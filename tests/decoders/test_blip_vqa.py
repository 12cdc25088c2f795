"""BLIP's question answering gives transformers' losses and answers, whatever the batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.decoders.blip_vqa import BlipVqa, BlipVqaConfig, ReadQuestions
from tests import tiny

QUESTIONS = ["what color is the circle?", "is there a red square?", "which shape is red?"]
IMAGE_INDEX = torch.tensor([1, 0, 1])
ANSWERS = ["red", "light blue", "circle", "a red square", "yes", "no"]
SIZES = {name: size for name, size in tiny.BLIP_SIZES.items() if name != "weights"}


def build(**changes: Any) -> BlipVqa:
    torch.manual_seed(0)
    section = {**SIZES, "weights": None, "initializer_range": 0.3, **changes}
    return BlipVqa(typed(BlipVqaConfig, section, "model.vqa")).eval()


@pytest.fixture(scope="module")
def vqa() -> BlipVqa:
    return build()


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, tiny.SIDE, tiny.SIDE, generator=generator)


def read(vqa: BlipVqa, rows: list[int] | None = None) -> ReadQuestions:
    rows = list(range(len(QUESTIONS))) if rows is None else rows
    with torch.no_grad():
        tokens = vqa.tower("grid").encode(images())
        return vqa.read(tokens, IMAGE_INDEX[rows], [QUESTIONS[row] for row in rows])


def theirs(vqa: BlipVqa, row: int, labels: Tensor) -> Any:
    """Output of transformers' model for one question and an answer [1, T]."""
    ids = torch.tensor([vqa.tokenizer(QUESTIONS[row])["input_ids"]])
    if vqa.config.first_token == "enc":
        ids[:, 0] = vqa.enc_token_id
    with torch.no_grad():
        return vqa.blip(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=vqa.normalize(images()[IMAGE_INDEX[row]][None]),
            labels=labels,
        )


def answer_ids(vqa: BlipVqa, answer: str) -> Tensor:
    words = vqa.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return torch.tensor([[vqa.start_token_id, *words, vqa.tokenizer.sep_token_id]])


@pytest.mark.parametrize("first_token", ["enc", "cls"])
def test_a_questions_loss_is_that_of_transformers(first_token: str) -> None:
    vqa = build(first_token=first_token)
    given = ANSWERS[1:4]
    with torch.no_grad():
        losses = vqa.losses(read(vqa), given)
    expected = [theirs(vqa, row, answer_ids(vqa, given[row])).loss for row in range(3)]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_generated_answers_are_those_of_transformers(vqa: BlipVqa) -> None:
    generated = []
    for row, question in enumerate(QUESTIONS):
        ids = torch.tensor([vqa.tokenizer(question)["input_ids"]])
        ids[:, 0] = vqa.enc_token_id
        found = vqa.blip.generate(
            ids,
            vqa.normalize(images()[IMAGE_INDEX[row]][None]),
            num_beams=3,
            max_length=10,
            do_sample=False,
            suppress_tokens=vqa._not_words,
        )
        generated.append(vqa.tokenizer.decode(found[0], skip_special_tokens=True))
    answers = vqa.answer(read(vqa))
    assert answers == [text.strip() for text in generated]
    assert len(set(answers)) > 1


def test_neither_batch_nor_passes_change_an_answer() -> None:
    for inference in ("generate", "rank"):
        vqa = build(inference=inference, candidates=3, questions_per_pass=2)
        together = vqa.answer(read(vqa), ANSWERS)
        assert [vqa.answer(read(vqa, [row]), ANSWERS)[0] for row in range(3)] == together


@pytest.mark.parametrize("candidates", [1, 3, 128])
def test_ranked_answers_are_those_of_a_plain_loop(candidates: int) -> None:
    """By transformers' own losses: likeliest first words first, then the whole answers."""
    vqa = build(inference="rank", candidates=candidates)
    expected = []
    for row in range(len(QUESTIONS)):
        start = torch.tensor([[vqa.start_token_id, vqa.tokenizer.sep_token_id]])
        scores = theirs_first_scores(vqa, row, start)
        firsts = [float(scores[answer_ids(vqa, answer)[0, 1]]) for answer in ANSWERS]
        order = sorted(range(len(ANSWERS)), key=lambda place: -firsts[place])[:candidates]
        sums = {}
        for place in order:
            ids = answer_ids(vqa, ANSWERS[place])
            sums[place] = -float(theirs(vqa, row, ids).loss) * (ids.shape[1] - 1)
        expected.append(ANSWERS[max(sums, key=sums.__getitem__)])
    assert vqa.answer(read(vqa), ANSWERS) == expected


def theirs_first_scores(vqa: BlipVqa, row: int, ids: Tensor) -> Tensor:
    """Scores [V] of the first word."""
    states = read(vqa, [row]).states
    with torch.no_grad():
        output = vqa.blip.text_decoder(input_ids=ids[:, :1], encoder_hidden_states=states)
    return output.logits[0, 0]


def published(folder: Path, eps: float = 1e-5) -> transformers.BlipForQuestionAnswering:
    """A folder in the layout of Salesforce/blip-vqa-base, at small size."""
    torch.manual_seed(3)
    text = {
        "vocab_size": SIZES["vocab_size"],
        "hidden_size": SIZES["text_width"],
        "num_hidden_layers": SIZES["text_layers"],
        "num_attention_heads": SIZES["text_heads"],
        "intermediate_size": SIZES["text_mlp"],
        "max_position_embeddings": SIZES["max_position_embeddings"],
        "bos_token_id": SIZES["vocab_size"] - 2,
    }
    vision = {
        "image_size": SIZES["image_size"],
        "patch_size": SIZES["patch_size"],
        "hidden_size": SIZES["vision_width"],
        "num_hidden_layers": SIZES["vision_layers"],
        "num_attention_heads": SIZES["vision_heads"],
        "intermediate_size": SIZES["vision_mlp"],
        "layer_norm_eps": eps,
    }
    model = transformers.BlipForQuestionAnswering(
        transformers.BlipConfig(text_config=text, vision_config=vision)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return model.eval()


def test_the_published_layout_is_read_with_its_epsilon(tmp_path: Path) -> None:
    model = published(tmp_path / "blip-vqa")
    vqa = build(weights=str(tmp_path / "blip-vqa"))
    assert vqa.load_report is not None
    assert not vqa.load_report.missing
    ours = vqa.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[f"blip.{name}"], tensor), name
    assert vqa.blip.config.vision_config.layer_norm_eps == 1e-5
    with torch.no_grad():
        pixels = vqa.normalize(images())
        expected = model.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(
            vqa.tower("grid").encode(images()), expected, rtol=1e-4, atol=1e-4
        )


def test_the_authors_names_are_read(tmp_path: Path) -> None:
    """As in salesforce/BLIP's model_base_vqa_capfilt_large.pth, whose image encoder is timm's."""
    from lavis_ext.encoders.blip.names import ANSWERING

    vqa = build()
    state = {ANSWERING.to_theirs(n): t for n, t in vqa.blip.state_dict().items()}
    assert any(name.startswith("visual_encoder.blocks.0.attn") for name in state)
    torch.save({"model": state}, tmp_path / "vqa.pth")
    other = build(weights=str(tmp_path / "vqa.pth"), initializer_range=0.1)
    for name, tensor in vqa.blip.state_dict().items():
        assert torch.equal(other.blip.state_dict()[name], tensor), name


def test_answers_to_rank_come_from_a_file_first(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["horse", "horse"]))
    vqa = build(inference="rank", answers=str(path))
    assert vqa.answer(read(vqa), ANSWERS) == ["horse"] * 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can't be read as JSON"),
        ("[1]", "isn't a JSON list of texts"),
        ('{"a": 1}', "isn't a JSON list of texts"),
        ("[", "can't be read as JSON"),
        ("[]", "there is no answer to choose from"),
    ],
)
def test_a_wrong_file_of_answers_is_an_error(
    content: str | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=says):
        build(answers=str(path))


def test_ranking_needs_answers() -> None:
    vqa = build(inference="rank")
    with pytest.raises(UserError, match=r"model\.vqa\.answers"):
        vqa.answer(read(vqa))
