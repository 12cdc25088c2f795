"""Each step of the pipeline equals LAVIS's PNP-VQA by its formulas, also for odd questions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lavis_ext.config.typed import typed
from lavis_ext.decoders.blip_captioner import BlipCaptioner, CaptionerConfig
from lavis_ext.decoders.fid_reader import FidReader, ReaderConfig, end_to_end
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.models.pnp_vqa.question_matching import QuestionMatchingConfig, match_questions
from tests import lavis_formulas, lavis_reading_formulas, tiny
from tests.lavis_formulas import Sizes, checkpoint
from tests.lavis_reading_formulas import PAD, T5Sizes, greedy_answer, next_word_logits

SIZES = Sizes(text_layers=12)
MAX_TXT_LEN = 35
"""In LAVIS, blip_image_text_matching.py."""
QUESTIONS = [
    "what color is the circle?",
    "",  # all that LAVIS's processor leaves of "..."
    "??",
    "is the circle red",
    "is there a star??",
    "?is the square blue?",
    "is the large red circle on the left of the small blue square " * 4,
]
EMPTY = [1, 2]
CAPTIONS = [
    ["a red circle", "a large blue star on a street", "a ring"],
    ["a small green square"],
    ["a star", "a star on a red street"],
]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return checkpoint("retrieval", seed=3, sizes=SIZES)


@pytest.fixture(scope="module")
def encoder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> BlipEncoder:
    path = tmp_path_factory.mktemp("weights") / "model_large_retrieval_coco_train2014.pth"
    torch.save({"model": state}, path)
    section = {**tiny.BLIP, "vision_layers": 2, "text_layers": 12, "weights": str(path)}
    built = BlipEncoder(typed(BlipEncoderConfig, section, "model.blip"), "model.blip").eval()
    return built.requires_grad_(False)


def image() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (1, 3, tiny.SIDE, tiny.SIDE), generator=generator).byte()


def laviss_tokens(encoder: BlipEncoder) -> tuple[Tensor, Tensor]:
    """Ids and mask of the questions (BlipITM.forward, PNPVQA.forward_itm)."""
    text = encoder.tokenizer(
        [question.strip("?") for question in QUESTIONS],
        padding="longest",
        truncation=True,
        max_length=MAX_TXT_LEN,
        return_tensors="pt",
    )
    input_ids = text.input_ids.clone()
    input_ids[:, 0] = encoder.enc_token_id
    return input_ids, text.attention_mask


@pytest.mark.parametrize("block", [0, 3, 7, 10])
def test_matching_scores_and_heat_are_laviss(
    block: int, state: dict[str, Tensor], encoder: BlipEncoder
) -> None:
    pixels = encoder.normalize(image())
    found = match_questions(
        encoder,
        encoder.encode(image()),
        torch.zeros(len(QUESTIONS), dtype=torch.int64),
        QUESTIONS,
        QuestionMatchingConfig(block_num=block, strip_question_marks=True),
    )
    tokens = lavis_formulas.image_tokens(state, pixels).expand(len(QUESTIONS), -1, -1)
    input_ids, mask = laviss_tokens(encoder)
    assert input_ids.shape[1] == MAX_TXT_LEN, "the longest question is truncated"
    logits = lavis_formulas.matching_logits(state, input_ids, mask, tokens, SIZES)
    torch.testing.assert_close(found.scores, logits.softmax(dim=1)[:, 1], atol=1e-5, rtol=0)
    heat = lavis_formulas.gradcams(state, input_ids, mask, tokens, block, SIZES)
    assert heat[EMPTY].isnan().all(), "LAVIS has no heat for a question without words"
    words = [row for row in range(len(QUESTIONS)) if row not in EMPTY]
    theirs, ours = (
        each[words] / each[words].sum(dim=1, keepdim=True) for each in (heat, found.heat)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg="a patch's probability")
    torch.testing.assert_close(found.heat[words], heat[words], atol=0, rtol=5e-3)
    assert found.heat[EMPTY].eq(0).all(), "patches are drawn uniformly"


@torch.no_grad()
def test_the_next_words_of_a_caption_of_some_patches_are_laviss(tmp_path: Path) -> None:
    state = checkpoint("caption", seed=4)
    torch.save({"model": state}, tmp_path / "w.pth")
    section = {**tiny.CAPTIONER, "vision_layers": 2, "weights": str(tmp_path / "w.pth")}
    captioner = BlipCaptioner(typed(CaptionerConfig, section, "model.captioner")).eval()
    patches = torch.tensor([1, 4, 9, 15])
    words = captioner.tokenizer("a picture of a red circle", add_special_tokens=False)["input_ids"]
    input_ids = torch.tensor([[captioner.prompt_ids[0], *words]])
    ours = captioner.blip.text_decoder(
        input_ids=input_ids,
        encoder_hidden_states=captioner.encode_image(image())[:, 1 + patches],
    ).logits
    tokens = lavis_formulas.image_tokens(state, captioner.normalize(image()))
    theirs = lavis_formulas.word_logits(
        state, input_ids, torch.ones_like(input_ids), tokens[:, 1 + patches]
    )
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    assert captioner.prompt_ids == [tiny.BLIP_SIZES["vocab_size"] - 2, *words[:3]]


# --- the reader ----------------------------------------------------------------------------------

READER = {**tiny.READER, "num_layers": 2, "num_decoder_layers": 2, "clean_answers": False}
OF_READER = T5Sizes(heads=4, layers=2, decoder_layers=2, width=32)
ASKED = ["What color is it?", "is there a star??", ""]


@pytest.fixture(scope="module")
def reader() -> FidReader:
    torch.manual_seed(5)
    return FidReader(typed(ReaderConfig, READER, "model.reader")).eval().requires_grad_(False)


@pytest.mark.parametrize("together", [1, 2])
def test_passages_and_next_words_are_laviss(together: int, reader: FidReader) -> None:
    state = reader.t5.state_dict()
    said = torch.tensor([[0, 5, 17, 3]])
    for question, captions in zip(ASKED, CAPTIONS, strict=True):
        texts = lavis_reading_formulas.passages(question, captions, together)
        assert [each.strip() for each in reader.passages(question, captions, together)] == [
            each.strip() for each in texts
        ]
        ids = [reader.tokenizer(text)["input_ids"] for text in texts]
        longest = max(map(len, ids))
        padded = torch.tensor([each + [PAD] * (longest - len(each)) for each in ids])
        mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids])
        states = lavis_reading_formulas.encoded(state, OF_READER, padded, mask)
        expected = next_word_logits(
            state, OF_READER, said, states.flatten(0, 1)[None], mask.flatten()[None]
        )
        ours, seen = end_to_end(reader.encode([question], [captions], together))
        logits = reader.t5(
            encoder_outputs=(ours,), attention_mask=seen, decoder_input_ids=said
        ).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("shortest", "longest"), [(0, 20), (0, 4), (4, 6)])
def test_greedy_answers_are_laviss(shortest: int, longest: int, reader: FidReader) -> None:
    config = typed(
        ReaderConfig,
        {
            **READER,
            "num_captions_fid": 1,
            "count_start_token": True,
            "min_answer_tokens": shortest,
            "max_answer_tokens": longest,
        },
        "model.reader",
    )
    expected = []
    for question, captions in zip(ASKED, CAPTIONS, strict=True):
        words = greedy_answer(
            reader.t5.state_dict(),
            OF_READER,
            lavis_reading_formulas.passages(question, captions, 1),
            lambda text: reader.tokenizer(text)["input_ids"],
            max_length=longest,
            min_length=shortest,
        )
        expected.append(reader.tokenizer.decode(words, skip_special_tokens=True))
    assert reader.read(ASKED, CAPTIONS, config) == expected
    assert any(expected)


# --- the whole pipeline --------------------------------------------------------------------------


def test_laviss_checkpoints_and_samples_give_laviss_heat_and_answers(tmp_path: Path) -> None:
    """Through ``predict_answers``; captions are drawn by other random numbers than LAVIS's."""
    states = {kind: checkpoint(kind, seed=6) for kind in ("retrieval", "caption")}
    for kind, each in states.items():
        torch.save({"model": each}, tmp_path / f"{kind}.pth")
    torch.manual_seed(5)
    FidReader(typed(ReaderConfig, READER, "model.reader")).t5.save_pretrained(tmp_path / "reader")
    grid = {**tiny.STREAMS["grid"], "vision_layers": 2, "weights": str(tmp_path / "retrieval.pth")}
    captioner = {**tiny.CAPTIONER, "vision_layers": 2, "weights": str(tmp_path / "caption.pth")}
    section = {
        **tiny.model_section({}, {"name": "first_only", "gate": False}, {"grid": grid}),
        "question_matching": {"block_num": 0, "strip_question_marks": True},
        "captioner": captioner,
        "reader": {
            **READER,
            "weights": str(tmp_path / "reader"),
            "num_captions_fid": 1,
            "count_start_token": True,
            "max_answer_tokens": 6,
        },
        "refined_heat": {"weight": 0.0},
    }
    config = typed(PnpVqaFusionConfig, section, "model")
    model = PnpVqaFusion(config, answering=True).eval()
    pixels = model.blip.normalize(image()).expand(3, -1, -1, -1)
    asked = ["what color is the circle?", "is the square red", "is there a star??"]
    answers, captions, heat = model.predict_answers({"image": pixels, "text_input": asked})
    text = model.blip.tokenizer(
        [each.strip("?") for each in asked], padding="longest", return_tensors="pt"
    )
    input_ids = text.input_ids.clone()
    input_ids[:, 0] = model.blip.enc_token_id
    state = states["retrieval"]
    expected = lavis_formulas.gradcams(
        state, input_ids, text.attention_mask, lavis_formulas.image_tokens(state, pixels), 0
    )
    torch.testing.assert_close(heat, expected, atol=0, rtol=5e-3)
    for question, texts, answer in zip(asked, captions, answers, strict=True):
        words = greedy_answer(
            model.reader.t5.state_dict(),
            OF_READER,
            lavis_reading_formulas.passages(question, texts, 1),
            lambda passage: model.reader.tokenizer(passage)["input_ids"],
            max_length=6,
        )
        assert answer == model.reader.tokenizer.decode(words, skip_special_tokens=True)
