"""The captioner and BLIP's question answering read fused tokens of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from lavis_ext.ask.command import main as ask
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.config.typed import typed
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.questions.statements import Statements
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.runners.freezing import freeze_all_but, train_mode, trained_patterns
from lavis_ext.runners.launch import started
from lavis_ext.tasks.gqa import GqaFusionTask, GqaReadingComprehensionFusionTask
from tests import tiny
from tests.tiny import DIFNET, make_samples, model_section, vocabulary

SENTENCES = [
    "the circle is red.",
    "no, there is no square.",
    "the shape is a circle",
    "yes, there is a blue circle to the left of the square.",
]
VQA = {**tiny.BLIP_SIZES, "initializer_range": 0.2}
PARTS = {"caption": "captioner", "vqa": "vqa"}


def section(**options: Any) -> dict[str, Any]:
    found = model_section({})
    found["vqa"] = VQA
    found["captioner"] = {**found["captioner"], "initializer_range": 0.2}
    return {**found, **options}


def build(*, answering: bool = False, seed: int = 0, **options: Any) -> PnpVqaFusion:
    torch.manual_seed(seed)
    config = typed(PnpVqaFusionConfig, section(**options), "model")
    return PnpVqaFusion(config, vocabulary(), load_weights=False, answering=answering).eval()


def trained_through(name: str, **options: Any) -> PnpVqaFusion:
    """A model with one objective; everything else is frozen, as in a run."""
    given = {"objectives": {name: None}, "fusions": {PARTS[name]: DIFNET}, **options}
    model = build(**given)
    freeze_all_but(model, trained_patterns(model, None))
    train_mode(model)
    return model


def samples(images: int = 4) -> QuestionBatch:
    found = make_samples(images)
    found["statement"] = [SENTENCES[i % len(SENTENCES)] for i in range(2 * images)]
    return found


def open_gates(model: PnpVqaFusion, part: str) -> None:
    fusion: Any = model.fusions[part]
    with torch.no_grad():
        fusion.gate.normal_(generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("answerer", ["reader", "vqa"])
def test_a_closed_gate_changes_no_bit(answerer: str) -> None:
    part = {"reader": "captioner", "vqa": "vqa"}[answerer]
    plain = build(answering=True, answerer=answerer)
    fused = build(answering=True, answerer=answerer, fusions={part: DIFNET}, seed=1)
    rest = {n: t for n, t in plain.state_dict().items() if not n.startswith("fusions.")}
    fused.load_state_dict(rest, strict=False)
    given = samples()
    with torch.no_grad():
        assert torch.equal(fused.part_tokens(part, given), plain.part_tokens(part, given))
    before, after = plain.answer(given), fused.answer(given)
    assert after.answers == before.answers
    assert after.captions == before.captions
    assert torch.equal(after.heat, before.heat)
    open_gates(fused, part)
    with torch.no_grad():
        tokens = fused.part_tokens(part, given)
    assert not torch.equal(tokens, plain.part_tokens(part, given))
    other: QuestionBatch = {**given, "images": {**given["images"]}}
    other["images"]["segmentation"] = other["images"]["segmentation"].flip(0)
    with torch.no_grad():
        assert not torch.equal(fused.part_tokens(part, other), tokens)


def test_a_sentences_loss_is_that_of_transformers() -> None:
    model = trained_through("caption").eval()
    given = samples(images=2)
    losses = model._batch(given)
    captioner, tokens = losses.parts["captioner"]
    texts = [text.strip(".") for text in given["statement"]]
    scored = captioner.score_sentences(tokens, given["image_index"], texts)
    for row, text in enumerate(texts):
        words = captioner.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*captioner.prompt_ids, *words, captioner.tokenizer.sep_token_id]])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(captioner.prompt_ids), -100)
        image = tokens[given["image_index"][row]][None]
        with torch.no_grad():
            theirs = captioner.blip.text_decoder(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                encoder_hidden_states=image,
                labels=labels,
            )
        torch.testing.assert_close(scored.losses[row], theirs.loss, rtol=1e-5, atol=1e-6)
        right = theirs.logits[0, :-1].argmax(dim=-1) == ids[0, 1:]
        expected = right[len(captioner.prompt_ids) - 1 :].float().mean()
        torch.testing.assert_close(scored.accuracies[row], expected)


@pytest.mark.parametrize("name", PARTS)
def test_only_its_own_fusion_gets_gradients(name: str) -> None:
    model = trained_through(name)
    # The encoder's gradient passes the gate, which is closed in the first step.
    open_gates(model, PARTS[name])
    total_loss(model(samples())).backward()
    own = f"fusions.{PARTS[name]}."
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter_name.startswith(own), parameter_name
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert model.may_leave_unused(gradients) is False


def overfit(model: PnpVqaFusion, given: QuestionBatch, steps: int) -> list[float]:
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = total_loss(model(given)) / given["global_size"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    return losses


def test_the_miniatures_captioner_learns_a_batch_of_sentences() -> None:
    """One sentence an image, which only the image tells."""
    pictures = torch.randint(0, 256, (2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    given: QuestionBatch = {
        "images": dict.fromkeys(("grid", "segmentation"), pictures.byte()),
        "image_index": torch.arange(2),
        "text_input": ["what is it?"] * 2,
        "statement": SENTENCES[:2],
        "global_size": 2,
    }
    fusion = {**DIFNET, "d_model": 128}
    chosen = {
        "model_type": "mini",
        "objectives": {"caption": {}},
        "fusion": {"name": "first_only"},
        "fusions": {"captioner": fusion},
    }
    defaults = PnpVqaFusion.default_section(OmegaConf.create(chosen))
    both = OmegaConf.create({"model": OmegaConf.merge(defaults, chosen)})
    torch.manual_seed(0)
    model = PnpVqaFusion.from_config(both.model)
    freeze_all_but(model, trained_patterns(model, None))
    train_mode(model)
    losses = overfit(model, given, steps=40)
    assert losses[-1] < 0.5 * losses[0]


def test_the_answerer_learns_a_batch_of_answers() -> None:
    """As far as the states of a random text encoder tell questions apart."""
    losses = overfit(trained_through("vqa"), samples(images=4), steps=40)
    assert losses[-1] < 0.7 * losses[0]


def test_what_has_no_sentence_has_no_loss() -> None:
    model = trained_through("caption").eval()
    given = samples()
    given["statement"] = [None, *given["statement"][1:]]
    module, tokens = model._batch(given).parts["captioner"]
    sentences = [text.strip(".") for text in samples()["statement"]]
    scored = module.score_sentences(tokens, given["image_index"], sentences)
    output = model(given)
    torch.testing.assert_close(output.losses["caption"], scored.losses[1:].sum())
    assert output.report["caption_without_sentence"] == 1
    assert output.examples == 8


def test_it_is_mixed_with_other_objectives() -> None:
    fusions = {"captioner": DIFNET, "vqa": DIFNET}
    objectives = {"itm": None, "caption": {"weight": 0.5}, "vqa": None}
    model = build(objectives=objectives, fusions=fusions)
    freeze_all_but(model, trained_patterns(model, None))
    for part in fusions:
        open_gates(model, part)
    with torch.no_grad():
        assert model.fusion.gate is not None
        model.fusion.gate.fill_(0.1)
    output = model(samples())
    assert {*output.losses} == {"itm", "caption", "vqa"}
    torch.testing.assert_close(output.losses["caption"], 0.5 * output.report["caption_loss"])
    total_loss(output).backward()
    for prefix in ("fusion.", "fusions.captioner.", "fusions.vqa."):
        grads = [p.grad for n, p in model.named_parameters() if n.startswith(prefix)]
        assert all(each is not None for each in grads), prefix
    assert [*model.token_streams] == ["grid", "segmentation", "captioner", "vqa"]


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Files of a captioner and a reader, so that a run's weights answer the same later."""
    model = build(answering=True)
    found = {}
    for part, network in (("captioner", model.captioner.blip), ("reader", model.reader.t5)):
        found[part] = str(tmp_path / f"{part}.safetensors")
        names = {id(p): n for n, p in network.named_parameters()}
        state = {n: t for n, t in network.state_dict().items() if n in names.values()}
        save_file({n: t.clone() for n, t in state.items()}, found[part])
    answering = build(answering=True, answerer="vqa")
    found["vqa"] = str(tmp_path / "vqa.safetensors")
    names = {n for n, _ in answering.vqa.blip.named_parameters()}
    state = {n: t.clone() for n, t in answering.vqa.blip.state_dict().items() if n in names}
    save_file(state, found["vqa"])
    return found


def with_weights(weights: dict[str, str]) -> dict[str, Any]:
    given = section()
    return {part: {**given[part], "weights": path} for part, path in weights.items()}


@pytest.mark.parametrize("name", PARTS)
def test_saved_weights_answer_the_same(name: str, weights: dict[str, str], tmp_path: Path) -> None:
    part, answerer = PARTS[name], {"caption": "reader", "vqa": "vqa"}[name]
    options: dict[str, Any] = {
        **with_weights(weights),
        "objectives": {name: None},
        "fusions": {part: DIFNET},
        "answerer": answerer,
    }

    def loaded(answering: bool, **more: Any) -> PnpVqaFusion:
        torch.manual_seed(0)
        config = typed(PnpVqaFusionConfig, {**section(**options), **more}, "model")
        return PnpVqaFusion(config, vocabulary(), answering=answering).eval()

    model = loaded(False)
    freeze_all_but(model, trained_patterns(model, None))
    open_gates(model, part)
    state = model.exported_state()
    assert any(each.startswith(f"fusions.{part}.") for each in state)
    assert not any(each.startswith(("captioner.", "vqa.")) for each in state)
    path = tmp_path / "trained.safetensors"
    config = {"model": section(**options)}
    TrainedWeights(state, config, None, None, 1, model.exported_facts()).save(path)

    answering = loaded(True, fusion_weights=str(path))
    for key, tensor in model.state_dict().items():
        assert torch.equal(answering.state_dict()[key], tensor), key
    given = samples()
    with torch.no_grad():
        tokens = model.part_tokens(part, given)
        assert torch.equal(answering.part_tokens(part, given), tokens)
    if name == "vqa":
        assert answering.answer(given).answers == model.evaluate(given)[1]
        assert answering.answer(given).captions == [[]] * 8


def test_weights_from_before_get_a_closed_gate_and_others_objectives_are_left_out(
    weights: dict[str, str], tmp_path: Path
) -> None:
    older = build(objectives={"itm": {"calibrated": True}, "head": None})
    path = tmp_path / "older.safetensors"
    config = {"model": section(objectives={"itm": {"calibrated": True}, "head": None})}
    TrainedWeights(older.exported_state(), config, None, None, 1, {}).save(path)
    options = {
        **with_weights(weights),
        "objectives": {"caption": None},
        "fusions": {"captioner": DIFNET},
        "fusion_weights": str(path),
    }
    model = PnpVqaFusion(typed(PnpVqaFusionConfig, section(**options), "model"), None)
    assert torch.equal(
        model.fusion.state_dict()["adapter.projections.segmentation.weight"],
        older.fusion.state_dict()["adapter.projections.segmentation.weight"],
    )
    report = str(model.load_reports[-1])
    assert "not in the file, and untrained: fusions.captioner.*" in report
    assert "left out, as the model has none: objectives.head.*, objectives.itm.*" in report
    assert "all " not in report
    options["fusions"] = {"captioner": {**DIFNET, "gate": False}}
    with pytest.raises(UserError, match=r"missing: fusions\.captioner\."):
        PnpVqaFusion(typed(PnpVqaFusionConfig, section(**options), "model"), None)


def test_a_fusion_of_the_other_streams_alone_may_be_one() -> None:
    """It doesn't read the part's own tokens, but replaces them."""
    fusion = {"name": "others_only"}
    options = {"fusion": {"name": "first_only"}, "fusions": {"captioner": fusion}}
    model = build(objectives={"caption": None}, **options)
    given = samples()
    model(given).losses["caption"].backward()
    given["images"]["grid"] = given["images"]["grid"].flip(0)
    assert torch.equal(
        model.part_tokens("captioner", given), model.part_tokens("captioner", samples())
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an objective without its fusion": (
        {"objectives": {"caption": None}},
        r"model\.objectives\.caption trains model\.fusions\.captioner, which is missing",
    ),
    "a part that has no fusion": (
        {"fusions": {"captionner": DIFNET}},
        r"model\.fusions\.captionner: there is no such part\. Did you mean 'captioner'\?",
    ),
    "a fusion without another stream": (
        {"streams": {"grid": tiny.STREAMS["grid"]}, "fusions": {"captioner": DIFNET}},
        r"model\.streams has only grid; add another",
    ),
    "a stream of a part's name": (
        {
            "streams": {"grid": tiny.STREAMS["grid"], "vqa": tiny.STREAMS["segmentation"]},
            "fusions": {"vqa": DIFNET},
        },
        r"model\.streams\.vqa has the name of a part",
    ),
    "another image size": (
        {"vqa": {**VQA, "image_size": 64}, "fusions": {"vqa": DIFNET}},
        r"model\.vqa\.image_size is 64 and model\.streams\.grid\.image_size 32; they must be equal",
    ),
    "an unknown option": (
        {"fusions": {"captioner": {**DIFNET, "layers": 3}}},
        r"model\.fusions\.captioner\.layers: there is no such key",
    ),
    "an unknown fusion": (
        {"fusions": {"captioner": {"name": "difnett"}}},
        r"model\.fusions\.captioner\.name: No fusion is registered as 'difnett'",
    ),
    "an unknown answerer": (
        {"answerer": "vqaa"},
        r"model\.answerer is 'vqaa'; it must be one of: reader, vqa",
    ),
    "another inference": (
        {"vqa": {**VQA, "inference": "ranking"}},
        r"model\.vqa\.inference is 'ranking'; it must be one of: generate, rank",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_says_what_to_change(case: str) -> None:
    options, says = WRONG[case]
    with pytest.raises(UserError, match=says):
        typed(PnpVqaFusionConfig, section(**options), "model")


def test_an_untrained_part_is_an_error_in_training_and_in_answering() -> None:
    options = {"objectives": {"vqa": None}, "fusions": {"vqa": DIFNET}}
    config = typed(PnpVqaFusionConfig, section(**options), "model")
    with pytest.raises(UserError, match=r"model\.vqa\.weights is null, and a random vqa"):
        PnpVqaFusion(config, vocabulary())
    config = typed(PnpVqaFusionConfig, section(answerer="vqa"), "model")
    with pytest.raises(UserError, match=r"model\.vqa\.weights is null"):
        PnpVqaFusion(config, vocabulary(), answering=True)


def test_vqa_refuses_arguments_of_captioner_and_reader() -> None:
    model = build(answering=True, answerer="vqa")
    assert not hasattr(model, "captioner")
    assert not hasattr(model, "reader")
    answers, captions, _ = model.predict_answers(samples())
    assert len(answers) == 8
    assert captions == [[]] * 8
    with pytest.raises(UserError, match="num_captions are for captioner and reader"):
        model.predict_answers(samples(), num_captions=3)


Configured = Callable[..., Config]


@pytest.fixture
def run_options(
    tiny_options: list[str], weights: dict[str, str], tmp_path: Path
) -> Callable[..., tuple[list[str], Path]]:
    """``run_options("caption", ...)``: arguments of ``configured`` for a run of two steps."""

    def make(name: str, *options: str) -> tuple[list[str], Path]:
        part, path = PARTS[name], tmp_path / f"{name}.yaml"
        model = section(
            **with_weights(weights),
            objectives={name: None},
            fusion={"name": "first_only"},
            fusions={part: DIFNET},
        )
        run = {"task": "gqa_fusion", "runner": "trainer", "max_steps": 2, "metric": None}
        content = {"model": model, "datasets": {"gqa_fusion": {"type": "mini"}}, "run": run}
        path.write_text(json.dumps(content))
        return [*tiny_options, *options], path

    return make


def test_a_run_trains_from_stored_tokens_of_the_captioners_own_encoder(
    configured: Configured, run_options: Callable[..., Any], tmp_path: Path
) -> None:
    """As from images; only the streams that are read are stored."""
    found = []
    features = [f"root={tmp_path / 'features'}", "make=true", "dtype=fp32"]
    for stored in ([], [f"run.features.{each}" for each in features]):
        options, path = run_options("caption", *stored)
        with started(configured(*options, cfg_path=path), ["train", "val"]) as runner:
            found.append(runner.train())
    live, read = found
    assert read["val"] == pytest.approx(live["val"], abs=1e-4)
    stores = {p.name.split("-")[0] for p in (tmp_path / "features").glob("*-*") if p.is_dir()}
    assert stores == {"segmentation", "captioner"}
    assert 0 < live["val"]["caption_loss"] < 20
    assert "answer_accuracy" not in live["val"]


def test_what_vqa_learned_answers_in_evaluations_and_about_pictures(
    configured: Configured,
    run_options: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, path = run_options("vqa", "model.answerer=vqa", "model.vqa.inference=rank")
    with started(configured(*options, cfg_path=path), ["train", "val", "testdev"]) as runner:
        trained = runner.train()
    assert 0 < trained["testdev"]["vqa_loss"] < 20
    found = str(runner.output_dir / "fusion_encoder_best.safetensors")
    evaluation = ["run.task=gqa_reading_comprehension_fusion", f"model.fusion_weights={found}"]
    cfg = configured(*options, *evaluation, "run.valid_splits=[]", cfg_path=path)
    with started(cfg, ["testdev"]) as runner:
        evaluated = runner.evaluate()
    assert evaluated["testdev"]["answer_accuracy"] == trained["testdev"]["answer_accuracy"]
    assert "captions" not in evaluated["testdev"]
    assert evaluated["testdev"]["points"] >= 0
    assert (runner.output_dir / "report.html").exists()

    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(picture)
    capsys.readouterr()
    arguments = ["--weights", found, "--device", "cpu", "--json", "--out", f"{tmp_path}/a.png"]
    ask([str(picture), "is there a circle?", *arguments])
    (answer,) = json.loads(capsys.readouterr().out)
    vocabulary = TrainedWeights.load(found, tensors=False).facts["vocabulary"]
    assert answer["answer"] in vocabulary["answers"]
    assert answer["captions"] == []
    assert answer["captions_asked_for"] == 0


def test_the_files_of_the_parts_that_train_or_answer_are_listed(
    configured: Configured, run_options: Callable[..., Any]
) -> None:
    def keys(name: str, task: Any, *more: str) -> dict[str, bool]:
        options, path = run_options(name, *more)
        cfg = configured(*options, cfg_path=path)
        return {need.key: need.later for need in task.needs(cfg, ["train"])}

    caption = keys("caption", GqaFusionTask)
    assert caption["model.captioner.weights"] is False
    assert caption["model.reader.weights"] is True
    assert "model.vqa.weights" not in caption
    vqa = keys("vqa", GqaFusionTask, "model.answerer=vqa")
    assert vqa["model.vqa.weights"] is False
    assert not any(key.startswith(("model.captioner.", "model.reader.")) for key in vqa)
    both = keys("caption", GqaReadingComprehensionFusionTask, "model.answerer=vqa")
    assert both["model.vqa.weights"] is False
    assert both["model.captioner.weights"] is False


def test_a_batch_has_the_full_answers_of_its_questions(
    configured: Configured, run_options: Callable[..., Any]
) -> None:
    options, path = run_options("caption")
    with started(configured(*options, cfg_path=path), ["train"]) as runner:
        dataset = runner.datasets["train"]
    rows = list(range(len(dataset)))[::-1]
    statements = Statements(dataset.table).sentences(rows)
    for row, statement in zip(rows, statements, strict=True):
        assert statement is not None
        full = dataset.table.structure(row)["fullAnswer"]
        assert full in (statement, f"Yes, {statement}", f"No, {statement}")
        assert not statement.startswith(("Yes,", "No,"))
    assert dataset[0]["statement"] == statements[-1:]
