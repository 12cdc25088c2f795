"""Checkpoints as LAVIS saves BLIP load whole, and give what LAVIS's formulas give."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.decoders.blip_captioner import BlipCaptioner, CaptionerConfig
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig
from lavis_ext.encoders.blip.names import CAPTIONING, MATCHING
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests import lavis_formulas, tiny
from tests.lavis_formulas import Sizes, checkpoint

QUESTIONS = ["what color is the circle?", "is there a square on the left of the red ring?"]
CAPTIONS = ["a red circle", "a large blue star on a street"]
SIZES = {"vision_layers": 2}
POSITIONS = "vision_model.embeddings.position_embedding"


def saved(path: Path, state: dict[str, Tensor], **beside: Any) -> str:
    """As LAVIS's runner saves: weights beside optimizer, config and scaler."""
    torch.save(
        {"model": state, "optimizer": {"state": {}}, "scaler": None, "epoch": 5} | beside, path
    )
    return str(path)


def matching(weights: str | None, **changes: Any) -> BlipEncoder:
    section = {**tiny.BLIP, **SIZES, "weights": weights, "max_question_tokens": 24, **changes}
    return BlipEncoder(typed(BlipEncoderConfig, section, "model.blip"), "model.blip").eval()


def captioning(weights: str | None, **changes: Any) -> BlipCaptioner:
    section = {**tiny.CAPTIONER, **SIZES, "weights": weights, **changes}
    return BlipCaptioner(typed(CaptionerConfig, section, "model.captioner")).eval()


def images(side: int = tiny.SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 3, side, side), generator=generator, dtype=torch.uint8)


def report_of(part: BlipEncoder | BlipCaptioner) -> LoadReport:
    assert part.load_report is not None
    return part.load_report


@pytest.mark.parametrize("kind", ["retrieval", "pretrain"])
@torch.no_grad()
def test_matching_scores_are_those_of_lavis(kind: str, tmp_path: Path) -> None:
    state = checkpoint(kind)
    encoder = matching(saved(tmp_path / "model_base_retrieval_coco.pth", state))
    report = report_of(encoder)
    assert (report.missing, report.unexpected, report.allowed) == ((), (), ())
    assert "read by the names of BLIP's authors and LAVIS; left out" in str(report)
    image = lavis_formulas.image_tokens(state, encoder.normalize(images()))
    tokens = encoder.encode(images())
    torch.testing.assert_close(tokens, image, atol=2e-5, rtol=0)
    input_ids, mask = encoder.tokenize(QUESTIONS)
    input_ids[:, 0] = encoder.enc_token_id
    theirs = lavis_formulas.matching_logits(state, input_ids, mask, image)
    ours = encoder.match(tokens, encoder.pack(QUESTIONS))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 1e-2
    # Transformers' epsilon would give others.
    other = matching(str(tmp_path / "model_base_retrieval_coco.pth"), vision_layer_norm_eps=1e-5)
    assert (other.encode(images()) - image).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["caption", "pretrain"])
@torch.no_grad()
def test_next_words_are_those_of_lavis(kind: str, tmp_path: Path) -> None:
    state = checkpoint(kind)
    captioner = captioning(saved(tmp_path / "model_base_caption.pth", state))
    report = report_of(captioner)
    assert (report.missing, report.unexpected) == ((), ())
    image = lavis_formulas.image_tokens(state, captioner.normalize(images()))
    scores = captioner.score_targets(images(), ["a picture of "] * 2, CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        words = captioner.tokenizer(f"a picture of {caption}", add_special_tokens=False)[
            "input_ids"
        ]
        input_ids = torch.tensor([[captioner.prompt_ids[0], *words]])
        theirs = lavis_formulas.word_logits(
            state, input_ids, torch.ones_like(input_ids), image[row : row + 1]
        )[0]
        said = int(scores.mask[row].sum())
        torch.testing.assert_close(scores.logits[row, :said], theirs[-said:], atol=5e-5, rtol=0)


def test_renamed_weights_survive_a_round_trip_bit_for_bit(tmp_path: Path) -> None:
    for kind, table, build, part in (
        ("retrieval", MATCHING, matching, "blip"),
        ("caption", CAPTIONING, captioning, "blip"),
    ):
        state = checkpoint(kind)
        ours = getattr(build(saved(tmp_path / "w.pth", state)), part).state_dict()
        back = {table.to_theirs(name): tensor for name, tensor in ours.items()}
        used = {name for name in state if not table.unused_by(name)}
        assert back.keys() == used
        assert all(torch.equal(back[name], state[name]) for name in used)
        again = {table.to_ours(name): tensor for name, tensor in back.items()}
        assert again.keys() == ours.keys()


def test_a_checkpoint_of_another_image_size_has_its_positions_interpolated(tmp_path: Path) -> None:
    state = checkpoint("retrieval", sizes=Sizes(grid=6))
    encoder = matching(saved(tmp_path / "w.pth", state))
    assert "positions interpolated from a grid of 6x6 to 4x4" in str(report_of(encoder))
    # LAVIS, vit.py: interpolate_pos_embed
    stored = state["visual_encoder.pos_embed"]
    patches = stored[:, 1:].reshape(-1, 6, 6, stored.shape[-1]).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(4, 4), mode="bicubic", align_corners=False)
    expected = torch.cat((stored[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
    assert torch.equal(encoder.blip.state_dict()[POSITIONS], expected)


def test_positions_of_a_transformers_folder_are_interpolated_too(tmp_path: Path) -> None:
    matching(None, image_size=2 * tiny.SIDE).blip.save_pretrained(tmp_path)
    encoder = matching(str(tmp_path))
    assert "a grid of 8x8 to 4x4" in str(report_of(encoder))
    assert encoder.encode(images()).shape[1] == 17


def test_half_precision_and_wrappers_on_top_of_other_names(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in checkpoint("caption").items()}
    captioner = captioning(saved(tmp_path / "w.pth", state))
    assert "without 'module.' in its names" in str(report_of(captioner))
    read = captioner.blip.state_dict()
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    stored = state["module.visual_encoder.blocks.1.mlp.fc1.weight"]
    assert torch.equal(read["vision_model.encoder.layers.1.mlp.fc1.weight"], stored.float())


def test_one_of_the_three_models_in_a_pnp_vqa_is_read(tmp_path: Path) -> None:
    prefixes = {"image_question_matching_model": "retrieval", "image_captioning_model": "caption"}
    state = {
        f"{prefix}.{name}": tensor
        for prefix, kind in prefixes.items()
        for name, tensor in checkpoint(kind, seed=len(prefix)).items()
    }
    state["question_answering_model.shared.weight"] = torch.ones(3, 2)
    weights = saved(tmp_path / "pnp_vqa.pth", state)
    for part, prefix in zip((matching(weights), captioning(weights)), prefixes, strict=True):
        assert report_of(part).missing == ()
        stored = state[f"{prefix}.visual_encoder.pos_embed"]
        assert torch.equal(part.blip.state_dict()[POSITIONS], stored)


def test_a_decoder_of_question_answering_is_no_captioner(tmp_path: Path) -> None:
    """All that captioning needs is there, and was trained to read questions."""
    with pytest.raises(UserError, match=r"unexpected: text_encoder\."):
        captioning(saved(tmp_path / "model_base_vqa.pth", checkpoint("vqa")))


def test_partly_matching_names_are_rejected_without_advice_to_allow_them(tmp_path: Path) -> None:
    """BERT's names are the same in many models; the image side has another program's."""
    state = checkpoint("retrieval")
    other = {name.replace("visual_encoder.", "visual."): each for name, each in state.items()}
    with pytest.raises(UserError, match="another network's or have unknown names") as refused:
        matching(saved(tmp_path / "w.pth", other))
    assert "allow_missing" not in str(refused.value)


# --- the epsilon ---------------------------------------------------------------------------------


def test_the_epsilon_comes_from_the_weights_config(tmp_path: Path) -> None:
    def eps(encoder: BlipEncoder) -> float:
        return encoder.blip.vision_model.post_layernorm.eps

    assert eps(matching(None)) == 1e-6
    matching(None, vision_layer_norm_eps=1e-3).blip.save_pretrained(tmp_path)
    assert eps(matching(str(tmp_path))) == 1e-3
    assert eps(matching(str(tmp_path / "model.safetensors"))) == 1e-3
    assert eps(matching(str(tmp_path), vision_layer_norm_eps=1e-4)) == 1e-4
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["vision_config"]["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert eps(matching(str(tmp_path))) == 1e-5  # as transformers takes it
    for wrong, message in (
        ("[", "can't be read"),
        ("[]", "JSON object"),
        ("{}", "no vision_config"),
    ):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(UserError, match=message):
            matching(str(tmp_path))


def test_weights_of_the_hub_without_their_config_have_transformers_epsilon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1 downloaded the weights alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--group--blip" / "snapshots" / "0123"
    (tmp_path / "models--group--blip" / "refs").mkdir(parents=True)
    (tmp_path / "models--group--blip" / "refs" / "main").write_text("0123")
    matching(None).blip.save_pretrained(snapshot)
    (snapshot / "config.json").unlink()
    assert matching("group/blip").blip.vision_model.post_layernorm.eps == 1e-5


def test_the_fingerprint_includes_an_epsilon_other_than_version_0_1s() -> None:
    before, now = matching(None, vision_layer_norm_eps=1e-5), matching(None)
    assert before.fingerprint_options() == {"image_size": 32, "heads": 2}
    assert now.fingerprint_options() == {"image_size": 32, "heads": 2, "layer_norm_eps": 1e-6}


def test_the_miniature_keeps_the_epsilon_it_was_trained_with() -> None:
    section = PnpVqaFusion.default_section(OmegaConf.create({"model_type": "mini"}))
    config = typed(PnpVqaFusion.Config, section, "model")
    assert config.streams["grid"].vision_layer_norm_eps == 1e-5
    assert config.captioner.vision_layer_norm_eps == 1e-5
