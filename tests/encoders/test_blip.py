"""BLIP's parts equal transformers' complete model, with weights in every format."""

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers

from lavis_ext.common.errors import UserError
from lavis_ext.encoders.blip.encoder import CLIP_MEAN, CLIP_STD, BlipEncoder, BlipEncoderConfig

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "what",
    "is",
    "the",
    "color",
    "of",
    "this",
    "dog",
    "?",
    "red",
    "##s",
    "on",
    "left",
]
QUESTIONS = ["What is this?", "Is the red dog on the left of this dog?"]


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def tiny(vocab: Path, **changes: object) -> BlipEncoderConfig:
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "vision_width": 24,
        "vision_layers": 2,
        "vision_heads": 2,
        "vision_mlp": 48,
        "text_width": 16,
        "text_layers": 2,
        "text_heads": 2,
        "text_mlp": 32,
        "vocab_size": len(WORDS) + 2,
        "max_position_embeddings": 20,
        "max_question_tokens": 20,
        "projection_dim": 8,
        "tokenizer": str(vocab),
        "weights": None,
        "first_token": "cls",
    }
    return BlipEncoderConfig(**{**sizes, **changes})  # type: ignore[arg-type]


def build(vocab: Path, **changes: object) -> BlipEncoder:
    torch.manual_seed(0)
    encoder = BlipEncoder(tiny(vocab, **changes)).eval()
    if encoder.load_report is None:
        # Transformers' small initial weights would make all scores alike.
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(10 if "embeddings" in name else 5)
    return encoder


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)


def scores(encoder: BlipEncoder, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder.match(encoder.encode(images), encoder.pack(QUESTIONS))


def read(encoder: BlipEncoder, questions: list[str]) -> torch.Tensor:
    """Text-only states of the questions [Q, L, W]."""
    packed = encoder.pack(questions)
    return packed.unpack(encoder.encode_questions(packed))


def test_match_equals_transformers(vocab: Path, images: torch.Tensor) -> None:
    encoder = build(vocab)
    input_ids, mask = encoder.tokenize(QUESTIONS)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        whole = encoder.blip(
            input_ids=input_ids,
            pixel_values=(images / 255 - mean) / std,
            attention_mask=mask,
        )
    ours = scores(encoder, images)
    torch.testing.assert_close(ours, whole.itm_score, atol=1e-5, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 1e-2


def test_pixels_are_normalized_as_by_transformers_processor(
    vocab: Path, images: torch.Tensor
) -> None:
    processor = transformers.BlipImageProcessor(do_resize=False)
    expected = processor(list(images), return_tensors="pt")["pixel_values"]
    normalize = build(vocab).normalize
    torch.testing.assert_close(normalize(images), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(images / 255), expected, atol=1e-5, rtol=0)


def test_a_questions_score_is_independent_of_a_longer_one_in_the_batch(
    vocab: Path, images: torch.Tensor
) -> None:
    encoder = build(vocab)
    together = scores(encoder, images)
    with torch.no_grad():
        tokens = encoder.encode(images[:1])
        alone = encoder.match(tokens, encoder.pack(QUESTIONS[:1]))
        short, padded = (read(encoder, questions) for questions in (QUESTIONS[:1], QUESTIONS))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)
    assert padded.shape[1] > short.shape[1]
    torch.testing.assert_close(padded[:1, : short.shape[1]], short, atol=1e-5, rtol=0)


def test_text_is_read_in_both_directions(vocab: Path) -> None:
    encoder = build(vocab)
    with torch.no_grad():
        hidden = read(encoder, ["what is red", "what is left"])
    assert (hidden[0, 0] - hidden[1, 0]).abs().max() > 1e-3


def test_enc_replaces_the_first_token_in_match_only(vocab: Path, images: torch.Tensor) -> None:
    plain, trained = build(vocab), build(vocab, first_token="enc")
    packed = plain.pack(QUESTIONS)
    kept = packed.input_ids.clone()
    replaced = kept.clone()
    replaced[:, 0] = len(WORDS) + 1
    with torch.no_grad():
        tokens = plain.encode(images)
        expected = plain.match(tokens, dataclasses.replace(packed, input_ids=replaced))
        torch.testing.assert_close(trained.match(tokens, packed), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(read(trained, QUESTIONS), read(plain, QUESTIONS))
    assert (expected - plain.match(tokens, packed)).abs().max() > 1e-3
    assert torch.equal(packed.input_ids, kept)


def test_gradient_reaches_the_tokens_through_frozen_weights(
    vocab: Path, images: torch.Tensor
) -> None:
    encoder = build(vocab).requires_grad_(False)
    tokens = encoder.encode(images).requires_grad_()
    logits = encoder.match(tokens, encoder.pack(QUESTIONS))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), tokens)
    assert tokens.shape == (2, 1 + 16, 24)
    assert (gradient.abs().amax(dim=(1, 2)) > 0).all()


def test_long_questions_are_cut_and_counted(vocab: Path) -> None:
    encoder = build(vocab, max_question_tokens=5)
    ids, mask = encoder.tokenize(["what is", "what is the color of this"])
    assert ids.tolist() == [[2, 5, 6, 3, 0], [2, 5, 6, 7, 3]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert encoder.truncated_questions == 1


@pytest.mark.parametrize("form", ["folder", "sharded", "bin", "pth"])
def test_published_formats_give_equal_scores(
    form: str, vocab: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    source = build(vocab)
    folder = tmp_path / "published"
    if form in ("folder", "sharded"):
        source.blip.save_pretrained(folder, max_shard_size="10KB" if form == "sharded" else "1GB")
        assert (folder / "model.safetensors.index.json").exists() == (form == "sharded")
        weights = folder
    else:
        # Old checkpoints carry this buffer.
        state = {
            **source.blip.state_dict(),
            "text_encoder.embeddings.position_ids": torch.arange(20)[None],
        }
        folder.mkdir()
        weights = folder if form == "bin" else folder / "blip.pth"
        torch.save(
            state if form == "bin" else {"model": state, "epoch": 3},
            folder / "pytorch_model.bin" if form == "bin" else weights,
        )
    loaded = build(vocab, weights=str(weights))
    assert loaded.load_report is not None
    assert loaded.load_report.missing == ()
    torch.testing.assert_close(scores(loaded, images), scores(source, images), atol=0, rtol=0)


def test_weights_of_another_depth_are_errors(vocab: Path, tmp_path: Path) -> None:
    build(vocab, text_layers=3).blip.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"text_encoder\.encoder\.layer\.2.*allow_unexpected"):
        build(vocab, weights=str(tmp_path / "three"))


def test_a_saved_tokenizer_gives_the_ids_of_its_vocab_file(vocab: Path, tmp_path: Path) -> None:
    transformers.BertTokenizer(vocab=str(vocab)).save_pretrained(tmp_path / "tokenizer")
    from_folder = build(vocab, tokenizer=str(tmp_path / "tokenizer"))
    assert torch.equal(from_folder.tokenize(QUESTIONS)[0], build(vocab).tokenize(QUESTIONS)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 33}, r"blip\.image_size is 33.*multiple"),
        ({"text_heads": 3}, r"blip\.text_heads is 3.*divide"),
        ({"vocab_size": len(WORDS)}, rf"blip\.vocab_size is {len(WORDS)}.*needs"),
        ({"max_question_tokens": 21}, r"max_question_tokens is 21"),
        ({"first_token": "end"}, r"first_token is 'end'.*enc"),
        ({"tokenizer": "no/such/folder/vocab.txt"}, r"blip\.tokenizer"),
    ],
)
def test_wrong_configs_name_their_key(changes: dict, message: str, vocab: Path) -> None:
    with pytest.raises(UserError, match=message):
        BlipEncoder(tiny(vocab, **changes))


def test_a_convolutional_stem_has_the_patches_of_the_linear_one(
    vocab: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    encoder = build(vocab, stem="convolutions")
    tokens = encoder.encode(images)
    assert tokens.shape == build(vocab).encode(images).shape
    # What a patch shows reaches its own token first.
    first = encoder.blip.vision_model.embeddings.patch_embedding
    changed = images.float()
    changed[:, :, :8, :8] = 1 - changed[:, :, :8, :8]
    difference = (first(changed) - first(images.float())).abs().sum(dim=1).mean(dim=0)
    assert difference.argmax() == 0
    with pytest.raises(UserError, match="stem: convolutions can't be written for transformers"):
        encoder.save_for_transformers(tmp_path / "out")
    saved = tmp_path / "blip"
    build(vocab).save_for_transformers(saved)
    with pytest.raises(UserError, match=r"blip\.weights has a linear layer there"):
        build(vocab, stem="convolutions", weights=str(saved))


def test_images_of_another_size_are_errors(vocab: Path) -> None:
    with pytest.raises(UserError, match="40x32"):
        build(vocab).encode(torch.zeros(1, 3, 40, 32))


def test_defaults_are_the_published_base_model(vocab: Path) -> None:
    published = transformers.BlipConfig()
    config = BlipEncoderConfig()
    assert config.vocab_size == published.text_config.vocab_size == 30524
    assert config.text_width == published.text_config.hidden_size
    assert config.vision_layers == published.vision_config.num_hidden_layers
    assert config.text_heads == 12
