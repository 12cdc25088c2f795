"""The types ``pnp_vqa_*`` take LAVIS's choices, and each choice does what LAVIS does."""

import ast
import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.config.typed import typed
from lavis_ext.decoders.blip_captioner import BlipCaptioner, CaptionerConfig, SamplingConfig
from lavis_ext.decoders.fid_reader import FidReader, ReaderConfig, end_to_end
from lavis_ext.evaluation.answered import Answered
from lavis_ext.evaluation.gqa.metrics import ACCURACY, BY_VQA_RULES
from lavis_ext.evaluation.picture import answer_figure
from lavis_ext.evaluation.vqa.accuracy import right_by_vqa_rules
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.models.pnp_vqa.question_matching import QuestionMatchingConfig, match_questions
from lavis_ext.processors.text import QuestionConfig, QuestionProcessor
from lavis_ext.registry import registry
from tests import tiny
from tests.tiny import make_samples, model_section, vocabulary

PROJECT = Path(__file__).parents[2]
LAVIS_GQA = PROJECT / "projects" / "pnp-vqa" / "eval" / "gqa_lavis_eval.yaml"
MINI = PROJECT / "lavis_ext" / "models" / "pnp_vqa" / "configs" / "mini.yaml"
SIZES = ("base", "large", "3b")
ALONE = {"grid": tiny.STREAMS["grid"]}
FIRST = {"name": "first_only", "gate": False}
OF_T5 = ("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "vocab_size")


def in_lavis() -> Path:
    return Path(registry.get_path("library_root"))


# --- the types -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_models_and_sizes_are_those_of_laviss_configs(
    configured: Callable[..., Config], size: str
) -> None:
    folder = in_lavis() / "configs" / "models"
    theirs = yaml.safe_load((folder / "pnp-vqa" / f"pnp_vqa_{size}.yaml").read_text())["model"]
    ours = configured(f"model.model_type=pnp_vqa_{size}", cfg_path=LAVIS_GQA).model
    (blip,) = ours.streams.values()
    assert blip.weights == theirs["image_question_matching_model"]["finetuned"]
    assert blip.image_size == theirs["image_question_matching_model"]["image_size"]
    assert ours.captioner.weights == theirs["image_captioning_model"]["finetuned"]
    assert ours.captioner.prompt == theirs["image_captioning_model"]["prompt"]
    assert ours.reader.weights == theirs["question_answering_model"]["pretrained"]
    t5 = json.loads((folder / "pnp-vqa" / f"unifiedqav2_{size}_config.json").read_text())
    assert {name: getattr(ours.reader, name) for name in OF_T5} == {n: t5[n] for n in OF_T5}


@pytest.mark.parametrize("size", SIZES)
def test_the_defaults_are_those_of_laviss_predict_answers(size: str) -> None:
    path = in_lavis() / "models" / "pnp_vqa_models" / "pnp_vqa.py"
    (called,) = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "predict_answers"
    )
    names = [each.arg for each in called.args.args][-len(called.args.defaults) :]
    theirs = dict(zip(names, map(ast.literal_eval, called.args.defaults), strict=True))
    section = PnpVqaFusion.default_section(OmegaConf.create({"model_type": f"pnp_vqa_{size}"}))
    ours = typed(PnpVqaFusionConfig, section, "model")
    sampling, reader = ours.captioner.sampling, ours.reader
    assert theirs == {
        "inference_method": "generate",
        "num_beams": reader.num_beams,
        "max_len": reader.max_answer_tokens,
        "min_len": reader.min_answer_tokens,
        "internal_bsz_fid": 1,
        "num_captions": sampling.num_captions,
        "num_captions_fid": reader.num_captions_fid,
        "cap_max_length": sampling.max_length,
        "cap_min_length": sampling.min_length,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "num_patches": sampling.patches.num_patches,
        "block_num": ours.question_matching.block_num,
    }


def test_the_evaluation_on_gqa_has_laviss_settings(configured: Callable[..., Config]) -> None:
    path = in_lavis() / "projects" / "pnp-vqa" / "eval" / "gqa_eval.yaml"
    theirs = yaml.safe_load(path.read_text())["run"]
    config = configured(cfg_path=LAVIS_GQA)
    sampling, reader = config.model.captioner.sampling, config.model.reader
    assert (sampling.num_captions, sampling.patches.num_patches, reader.num_captions_fid) == (
        theirs["num_captions"],
        theirs["num_patches"],
        theirs["num_captions_fid"],
    )
    assert config.run.batch_size_eval == theirs["batch_size_eval"]
    assert config.run.seed == theirs["seed"]


def test_a_type_at_the_miniatures_size_is_evaluated_without_trained_weights(
    mini_gqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini = yaml.safe_load(MINI.read_text())["model"]
    content = yaml.safe_load(LAVIS_GQA.read_text())
    model = content["model"]
    model["streams"] = {"grid": mini["streams"]["grid"]}
    sampling = {"num_captions": 6, "max_tries": 3, "patches": {"num_patches": 6}}
    model["captioner"] = mini["captioner"] | {"sampling": sampling}
    model["reader"] = mini["reader"] | {"max_answer_tokens": 20}
    model["question_matching"] = {"block_num": 0}
    content["datasets"]["gqa_fusion"] |= {"type": "mini", "root": str(mini_gqa)}
    content["datasets"]["gqa_fusion"]["mini_gqa"] = {"root": str(mini_gqa), "images": 40}
    content["run"] |= {"output_dir": str(tmp_path), "device": "cpu", "num_workers": 0}
    content["run"] |= {"small_test_size": 30, "name": "lavis", "sample_by": "examples"}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--cfg-path", str(config)])
    runpy.run_path(str(PROJECT / "evaluate.py"), run_name="__main__")
    metrics = json.loads((tmp_path / "lavis" / "metrics.json").read_text())["testdev"]
    assert metrics[BY_VQA_RULES.name] >= metrics[ACCURACY] > 0.3
    assert (tmp_path / "lavis" / "report.html").exists()


# --- one stream ----------------------------------------------------------------------------------


def alone(**changes: Any) -> PnpVqaFusion:
    torch.manual_seed(0)
    section = model_section({}, FIRST, ALONE) | {"refined_heat": {"weight": 0.0}} | changes
    config = typed(PnpVqaFusionConfig, section, "model")
    return PnpVqaFusion(config, vocabulary(), load_weights=False, answering=True).eval()


def test_one_stream_answers_from_raw_heat() -> None:
    model, samples = alone(), make_samples(images=2)
    output = model.answer(samples)
    assert list(model.streams) == ["grid"]
    assert torch.equal(output.patch_heat, output.heat)
    assert torch.equal(output.refined.flatten(1), output.heat)
    assert not output.masks.any()
    assert output.image_size == (32, 32)
    assert output.masks.shape == (4, 4, 4)
    _, captions, returned = model.predict_answers(samples)
    assert torch.equal(returned, output.heat)
    assert captions == output.captions


def test_a_drawing_of_one_stream_is_labeled_as_without_masks() -> None:
    samples = make_samples(images=1)
    output = alone().answer(samples)
    assert (output.labels == 1).any()
    image = Image.fromarray(samples["images"]["grid"][0].permute(1, 2, 0).numpy())
    figure = answer_figure(image, "picture.png", Answered.all_of(samples["text_input"], output))
    said = {text.get_text() for axes in figure.axes for text in axes.texts} | {
        text.get_text() for text in figure.texts
    }
    assert {"points, no mask", "refined heat: as raw"} <= said


def test_refined_heat_still_needs_masks() -> None:
    with pytest.raises(UserError, match=r"no stream's encoder is efficient_sam.*weight to 0"):
        alone(refined_heat={"weight": 0.1})


# --- question matching ---------------------------------------------------------------------------


def test_question_marks_are_stripped_if_the_config_says_so() -> None:
    encoder = alone().blip
    tokens = torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(0))

    def matched(question: str, **options: Any) -> Any:
        config = QuestionMatchingConfig(block_num=0, **options)
        return match_questions(encoder, tokens, torch.tensor([0]), [question], config)

    bare = matched("is it red")
    for question in ("is it red?", "is it red??", "?is it red?"):
        found = matched(question, strip_question_marks=True)
        assert torch.equal(found.heat, bare.heat)
        assert torch.equal(found.scores, bare.scores)
    assert not torch.equal(matched("is it red?").heat, bare.heat)


# --- captions ------------------------------------------------------------------------------------

SAID = ["a red circle", "red circle", "a red circle on a street", "a star", "a star", "a ring"]


@pytest.mark.parametrize(
    ("contained", "kept"),
    [
        (False, ["a red circle", "red circle", "a red circle on a street", "a star", "a ring"]),
        (True, ["a red circle", "a red circle on a street", "a star", "a ring"]),
    ],
)
def test_captions_contained_in_earlier_ones_are_dropped(
    contained: bool, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = BlipCaptioner(typed(CaptionerConfig, tiny.CAPTIONER, "model.captioner")).eval()
    monkeypatch.setattr(captioner, "_sample", lambda *_: SAID)
    sampling = SamplingConfig(
        num_captions=len(SAID), max_tries=1, max_length=9, min_length=0, drop_contained=contained
    )
    sampling.patches = replace(sampling.patches, num_patches=4)
    found = captioner.caption(
        torch.zeros(1, 17, 32), torch.tensor([0]), torch.ones(1, 16), ["1"], sampling
    )
    assert found.texts == [kept]
    assert found.repeated == [len(SAID) - len(kept)]


# --- the reader ----------------------------------------------------------------------------------

ASKED = [["a red circle", "a star"], ["a green star"]]


def reader_config(**options: Any) -> ReaderConfig:
    return typed(ReaderConfig, {**tiny.READER, **options}, "model.reader")


@pytest.fixture(scope="module")
def reader() -> FidReader:
    torch.manual_seed(1)
    return FidReader(reader_config()).eval()


@pytest.mark.parametrize(("shortest", "longest"), [(0, 2), (5, 6)])
def test_lengths_include_the_start_token_if_the_config_says_so(
    reader: FidReader, shortest: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Words as numbers: random weights say little but padding.
    def numbers(said: torch.Tensor, **_: bool) -> list[str]:
        return [str(row.tolist()) for row in said]

    monkeypatch.setattr(reader.tokenizer, "batch_decode", numbers)
    lengths = {"min_answer_tokens": shortest, "max_answer_tokens": longest}
    states, mask = end_to_end(reader.encode(["red?", "blue?"], ASKED))
    said = reader.t5.generate(
        encoder_outputs=BaseModelOutput(states),
        attention_mask=mask,
        min_length=shortest,
        max_length=longest,
    )
    expected = numbers(said)
    config = reader_config(**lengths, count_start_token=True, clean_answers=False)
    assert reader.read(["red?", "blue?"], ASKED, config) == expected
    longer = reader_config(**lengths, clean_answers=False)
    assert reader.read(["red?", "blue?"], ASKED, longer) != expected


def test_answers_are_unchanged_if_the_config_says_so(
    reader: FidReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader.tokenizer, "batch_decode", lambda *_, **__: [" The dog. "])
    asked = (["red?"], ASKED[:1])
    assert reader.read(*asked, reader_config(clean_answers=False)) == [" The dog. "]
    assert reader.read(*asked, reader_config()) == ["the dog"]


def test_a_start_token_that_takes_all_the_room_is_an_error() -> None:
    with pytest.raises(UserError, match=r"max_answer_tokens is 1.*must be at least 2"):
        reader_config(count_start_token=True, max_answer_tokens=1)


def test_only_one_group_of_passages_is_allowed() -> None:
    model = alone(reader={**tiny.READER, "internal_bsz_fid": "passages"})
    samples = make_samples(images=1)
    assert len(model.predict_answers(samples, internal_bsz_fid=1)[0]) == 2
    with pytest.raises(UserError, match=r"internal_bsz_fid is 2.*2 groups.*Give 1"):
        model.predict_answers(samples, internal_bsz_fid=2)


# --- questions and answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        "What color is the circle?",
        "Is it (red)? No: blue; green!",
        '"What" is *this*...',
        "...",
        "Are there  two spaces?",
        "red " * 60,
        "it's a #1 - or~not?",
    ],
)
def test_questions_are_read_as_after_laviss_processor(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", sys.modules.get("cv2") or ModuleType("cv2"))
    for kind in ("processor_name_mapping", "paths"):
        monkeypatch.setitem(registry.mapping, kind, dict(registry.mapping[kind]))
    from lavis.processors.blip_processors import BlipQuestionProcessor

    section = yaml.safe_load(LAVIS_GQA.read_text())["datasets"]["gqa_fusion"]["text_processor"]
    ours = QuestionProcessor(QuestionConfig(**section["eval"]))(question)
    theirs = BlipQuestionProcessor()(question)
    # Spaces between words, which no tokenizer keeps, are LAVIS's.
    assert ours.split() == theirs.split()


def test_vqas_rules_remove_articles_and_punctuation() -> None:
    assert right_by_vqa_rules("The dog.", "dog")
    assert right_by_vqa_rules("two", "2")
    assert not right_by_vqa_rules("dogs", "dog")
