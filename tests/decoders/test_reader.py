"""The reader encodes passages separately and decodes them together, independently of the batch."""

import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import sentencepiece
import torch
import transformers

from lavis_ext.common.errors import UserError
from lavis_ext.decoders.fid_reader import FidReader, ReaderConfig, end_to_end, normalize_answer
from tests.lavis_references import T5, T5_PIECES

TOKENIZER = "packaged:miniature/reader_tokenizer.json"
SIZES: dict[str, Any] = {
    **T5,
    "tokenizer": TOKENIZER,
    "vocab_size": 660,
    "num_captions_fid": 2,
    "max_answer_tokens": 6,
}
QUESTIONS = [
    "what color is the circle?",
    "what color is the star?",
    "which shape is red?",
    "is there a ring?",
]
CAPTIONS = [
    ["a red circle", "a large blue star", "a street"],
    ["a red circle", "a green star"],
    ["a red circle on a street", "a green star", "a ring", "a small ring", "a cross"],
    ["a green star"],
]
ANSWERS = ["red", "green", "circle", "no"]


def loss_of(
    reader: FidReader, questions: list[str], captions: list[list[str]], answers: list[str]
) -> torch.Tensor:
    return reader.loss(reader.encode(questions, captions), answers)


def make_reader(seed: int = 0, **options: Any) -> FidReader:
    torch.manual_seed(seed)
    return FidReader(ReaderConfig(**{**SIZES, "weights": None, **options})).eval()


@pytest.fixture(scope="module")
def trained() -> FidReader:
    reader = make_reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-2)
    reader.train()
    for _ in range(80):
        optimizer.zero_grad()
        loss = loss_of(reader, QUESTIONS, CAPTIONS, ANSWERS).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    return reader.eval()


def test_training_by_the_loss_changes_the_answers(trained: FidReader) -> None:
    assert trained.read(QUESTIONS, CAPTIONS) == ANSWERS


def test_passages_are_the_question_with_some_captions_each() -> None:
    passages = make_reader().passages("What color is it? ", ["A red circle ", "a star", "a ring"])
    assert passages == [
        "what color is it? \\n a red circle. a star.",
        "what color is it? \\n a ring.",
    ]


def test_passages_are_encoded_separately_and_concatenated() -> None:
    reader = make_reader()
    together, mask = end_to_end(reader.encode(QUESTIONS[:1], CAPTIONS[:1], 2))
    alone = []
    for passage in reader.passages(QUESTIONS[0], CAPTIONS[0]):
        ids = torch.tensor([reader.tokenizer(passage)["input_ids"]])
        alone.append(reader.t5.encoder(input_ids=ids).last_hidden_state[0])
    assert mask.all()
    torch.testing.assert_close(together[0], torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_decoder_reads_the_second_passage_too() -> None:
    reader = make_reader()
    one = loss_of(reader, QUESTIONS[:1], [["a red circle", "a star", "a ring"]], ["red"])
    other = loss_of(reader, QUESTIONS[:1], [["a red circle", "a star", "a cross"]], ["red"])
    assert abs(float((one - other).detach())) > 1e-6


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_and_losses_do_not_depend_on_the_batch(trained: FidReader, beams: int) -> None:
    reader = make_reader(seed=3)
    options = ReaderConfig(**{**SIZES, "num_beams": beams})
    together = reader.read(QUESTIONS, CAPTIONS, options)
    apart = [reader.read([q], [c], options)[0] for q, c in zip(QUESTIONS, CAPTIONS, strict=True)]
    assert together == apart
    assert reader.read(QUESTIONS[::-1], CAPTIONS[::-1], options) == together[::-1]
    in_passes = ReaderConfig(**{**SIZES, "num_beams": beams, "questions_per_pass": 3})
    assert reader.read(QUESTIONS, CAPTIONS, in_passes) == together
    losses = loss_of(trained, QUESTIONS, CAPTIONS, ANSWERS)
    alone = torch.cat(
        [
            loss_of(trained, [q], [c], [a])
            for q, c, a in zip(QUESTIONS, CAPTIONS, ANSWERS, strict=True)
        ]
    )
    torch.testing.assert_close(losses, alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_a_word_reads_the_passages_as_transformers_does_without_projecting_them(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = make_reader(seed=3)
    plain = transformers.T5ForConditionalGeneration(reader.t5.config).eval()
    plain.load_state_dict(reader.t5.state_dict())
    some = slice(0, 4 if masked else 1)
    states, mask = end_to_end(reader.encode(QUESTIONS[some], CAPTIONS[some]))
    assert bool((mask == 0).any()) == masked
    words = torch.tensor([[0]] * len(states))
    expected, found = (
        t5(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=words).logits
        for t5 in (plain, reader.t5)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for block in reader.t5.decoder.block:
        attention = block.layer[1].EncDecAttention
        for projection in (attention.k, attention.v):
            monkeypatch.setattr(projection, "forward", pytest.fail)
    reader.read(QUESTIONS, CAPTIONS)


def test_the_loss_is_that_of_transformers_for_one_passage() -> None:
    reader = make_reader()
    passage, answer = reader.passages(QUESTIONS[0], ["a red circle"])[0], "dark red"
    ids = torch.tensor([reader.tokenizer(passage)["input_ids"]])
    labels = torch.tensor([reader.tokenizer(answer)["input_ids"]])
    expected = reader.t5(input_ids=ids, labels=labels).loss
    found = loss_of(reader, QUESTIONS[:1], [["a red circle"]], [answer])
    torch.testing.assert_close(found[0], expected)


def test_answers_keep_their_length_limits() -> None:
    reader = make_reader(seed=1)
    exact = ReaderConfig(**{**SIZES, "min_answer_tokens": 4, "max_answer_tokens": 4})
    states, mask = end_to_end(reader.encode(QUESTIONS, CAPTIONS, 2))
    assert reader.read(QUESTIONS, CAPTIONS, exact)
    with pytest.raises(UserError, match=r"min_answer_tokens is 5; it must be at most"):
        reader.read(
            QUESTIONS,
            CAPTIONS,
            ReaderConfig(**{**SIZES, "min_answer_tokens": 5, "max_answer_tokens": 4}),
        )
    assert states.shape[:2] == mask.shape


def test_a_question_without_captions_is_an_error_that_names_it() -> None:
    with pytest.raises(
        UserError, match=r"no captions for the question 'is there a ring\?'.*max_tries"
    ):
        make_reader().read(QUESTIONS, [*CAPTIONS[:3], []])


def test_long_passages_are_cut_and_counted() -> None:
    reader = make_reader(max_passage_tokens=8)
    states, _ = end_to_end(reader.encode(QUESTIONS[:2], [["a ring"] * 2, ["a"]], 2))
    assert reader.truncated_passages == 2
    assert states.shape[1] == 8


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_transformers_saved_load(tmp_path: Path, sharded: bool) -> None:
    saved = make_reader(seed=5)
    saved.t5.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    loaded = make_reader(seed=6, weights=str(tmp_path))
    assert loaded.load_report is not None
    assert not loaded.load_report.missing
    assert not loaded.load_report.unexpected
    assert loaded.read(QUESTIONS, CAPTIONS) == saved.read(QUESTIONS, CAPTIONS)


def test_an_old_checkpoint_with_every_tied_name_loads(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in make_reader(seed=5).t5.state_dict().items()}
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    torch.save({**state, unused: torch.zeros(32, 4)}, tmp_path / "pytorch_model.bin")
    reader = make_reader(weights=str(tmp_path))
    assert reader.load_report is not None
    assert reader.load_report.unexpected == (unused,)


@pytest.mark.parametrize("program", ["LAVIS", "FiD", "PNP-VQA"])
def test_a_reader_that_lavis_stored_loads(program: str, tmp_path: Path) -> None:
    """Its encoder is in a wrapper that has the layers a second time (T5EncoderWrapper)."""
    saved = make_reader(seed=5)
    state = {}
    for name, tensor in saved.t5.state_dict().items():
        inner = name.removeprefix("encoder.")
        if inner == name:
            state[name] = tensor
        elif program == "FiD":  # with activation checkpoints
            state[re.sub(r"^encoder\.(block\.\d+\.)?", r"encoder.encoder.\1module.", name)] = tensor
        else:
            state[f"encoder.encoder.{inner}"] = tensor
            if inner.startswith("block."):
                state[name] = tensor
    if program == "PNP-VQA":
        state = {f"question_answering_model.{name}": each for name, each in state.items()}
        state["image_captioning_model.text_decoder.bert.x"] = torch.ones(1)
    torch.save({"model": state}, tmp_path / "reader.pth")
    loaded = make_reader(seed=6, weights=str(tmp_path / "reader.pth"))
    assert loaded.load_report is not None
    assert (loaded.load_report.missing, loaded.load_report.unexpected) == ((), ())
    assert "names of FiD and LAVIS" in str(loaded.load_report)
    assert loaded.read(QUESTIONS, CAPTIONS) == saved.read(QUESTIONS, CAPTIONS)
    ours = loaded.t5.state_dict()
    assert all(torch.equal(ours[name], each) for name, each in saved.t5.state_dict().items())


def test_weights_of_other_sizes_are_errors(tmp_path: Path) -> None:
    make_reader().t5.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="reader from"):
        make_reader(weights=str(tmp_path), d_ff=128)


def test_a_published_tokenizers_files_load_by_the_same_code(tmp_path: Path) -> None:
    tokens = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz?.\\"]
    vocabulary = [(token, -1.0) for token in tokens]
    transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(tmp_path)
    reader = make_reader(tokenizer=str(tmp_path))
    ids = reader.tokenizer("a red star")["input_ids"]
    assert ids[-1] == reader.tokenizer.eos_token_id
    assert reader.tokenizer.decode(ids, skip_special_tokens=True) == "a red star"


TEXTS = [*QUESTIONS, *(caption for captions in CAPTIONS for caption in captions)]
WORDS = sorted({word for text in TEXTS for word in text.split()})
HUB_FILES: dict[str, Any] = {
    "config.json": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
    "special_tokens_map.json": {
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "additional_special_tokens": [f"<extra_id_{n}>" for n in range(100)],
    },
    "tokenizer_config.json": {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": 512,
        "extra_ids": 100,
        "sp_model_kwargs": {},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "additional_special_tokens": [f"<extra_id_{n}>" for n in range(100)],
    },
}
"""Files beside ``spiece.model`` and weights in UnifiedQA's repositories; T5's have the first."""


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with T5's special tokens, named as in T5's repositories."""
    folder = tmp_path_factory.mktemp("spiece")
    generator = random.Random(0)
    texts = folder / "texts.txt"
    texts.write_text("\n".join(" ".join(generator.choices(WORDS, k=8)) for _ in range(500)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        **T5_PIECES,
    )
    return folder / "spiece.model"


@pytest.mark.parametrize("beside", [[], ["config.json"], list(HUB_FILES)])
@pytest.mark.parametrize("from_hub", [False, True])
def test_a_folder_with_just_the_files_that_the_hub_has_gives_sentencepieces_ids(
    spiece: Path,
    beside: list[str],
    from_hub: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(spiece, tmp_path / "spiece.model")
    for name in beside:
        (tmp_path / name).write_text(json.dumps(HUB_FILES[name]))
    source = str(tmp_path)
    if from_hub:
        source = "group/unifiedqa"
        cache = tmp_path / "cache"
        there = [SimpleNamespace(rfilename=name, lfs=None) for name in ["spiece.model", *beside]]

        def download(_repository: str, name: str, revision: str | None = None) -> str:
            cache.mkdir(exist_ok=True)
            return str(shutil.copy(tmp_path / name, cache / name))

        info = SimpleNamespace(siblings=there, sha="1234")
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    reader = make_reader(tokenizer=source)
    if from_hub:
        read = {"spiece.model", *beside} - {"config.json"}
        assert {path.name for path in cache.iterdir()} == read
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    for text in [*TEXTS, "a zebra \\n which?", "Red  circle."]:
        assert reader.tokenizer(text)["input_ids"] == [*pieces.encode(text), 1], text
    assert len(reader.tokenizer) == pieces.get_piece_size() + 100
    assert reader.tokenizer.decode(pieces.encode("a red star")) == "a red star"
    assert len(reader.read(QUESTIONS, CAPTIONS)) == len(QUESTIONS)


def test_a_damaged_spiece_model_is_an_error(spiece: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.reader\.tokenizer: .* is not a T5 tokenizer"):
        make_reader(tokenizer=str(tmp_path))


def test_other_files_are_not_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.reader\.tokenizer: .* is not a T5 tokenizer"):
        make_reader(tokenizer=str(tmp_path))
    with pytest.raises(UserError, match=r"vocab_size is 100; the tokenizer .* needs 657"):
        make_reader(vocab_size=100)


@pytest.mark.parametrize(
    ("said", "answer"),
    [("Red.", "red"), (" to the  left", "to the left"), ('"yes"', "yes"), ("t-shirt", "t-shirt")],
)
def test_answers_are_written_as_gqa_writes_them(said: str, answer: str) -> None:
    assert normalize_answer(said) == answer
