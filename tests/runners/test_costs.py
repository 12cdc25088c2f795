"""A dry run reports a run's cost, and leaves no files."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.base import StoredTokens
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.questions.made_up import PublishedSplit
from lavis_ext.models.base import total_loss
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.runners import dry_run as costs
from lavis_ext.runners.dry_run import MeasuredSteps, describe, measure_steps
from lavis_ext.runners.flops import BatchFlops, Passes, count_flops, count_passes, counted_flops
from lavis_ext.runners.freezing import freeze_all_but, train_mode
from lavis_ext.runners.launch import prepared
from lavis_ext.runners.memory import StepMemory
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.trainer import Stepper
from tests.launching import torchrun
from tests.runners.test_runner import TINY_MODEL
from tests.tiny import DIFNET, HEAD, SIDE, make_model, make_samples

PROJECT = Path(__file__).parents[2]
ON_HOST = GqaFusionDataset.on_host
SPLITS = ["train", "val", "testdev"]
FUSION_ALONE = 'run.trainable=["fusion.*"]'


@pytest.fixture
def config(configured: Callable[..., Config], tiny_options: list[str]) -> Callable[..., Config]:
    return lambda *options: configured(*tiny_options, *TINY_MODEL, *options)


def costs_of(config: Config, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The first line of a dry run's costs with each label, by label."""
    describe(config, SPLITS)
    lines = reversed(capsys.readouterr().out.splitlines())
    return {line.split()[0]: line for line in lines if line.strip()}


def test_a_dry_run_reports_flops_memory_and_time_and_writes_no_file(
    config: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "STEPS", 3)
    lines = costs_of(config(), capsys)
    assert "FLOPs        an image " in lines["FLOPs"]
    assert "FLOP of it encoders), backward" in lines["FLOPs"]
    assert "per process" in lines["memory"]
    assert (
        "2 step(s) after 1 for warm-up, on cpu with 1 thread(s), 1 process(es)"
        in (lines["measured"])
    )
    assert "per epoch" in lines["time"]
    assert "evaluations" in lines["time"]
    assert not list(tmp_path.rglob("*"))


def test_with_features_their_size_is_reported_and_steps_measured_without_a_store(
    config: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "STEPS", 2)
    stored = config(f"run.features.root={tmp_path / 'features'}", FUSION_ALONE)
    lines = costs_of(stored, capsys)
    assert "GiB free" in lines["features"]
    assert "random tokens in place of features" in lines["measured"]
    assert not list(tmp_path.rglob("*"))


def test_a_step_that_does_not_fit_into_memory_is_not_tried(
    config: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "free_bytes", lambda _: 2**20)
    lines = costs_of(config(), capsys)
    assert "doesn't fit into memory" in lines["measured"]
    assert "time" not in lines


def test_a_smaller_batch_is_measured_where_the_runs_own_does_not_fit(
    config: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "STEPS", 2)
    needed = []

    def to_come(step: StepMemory, *_: Any) -> float:
        needed.append(step.activations)
        return step.activations

    monkeypatch.setattr(StepMemory, "to_come", to_come)
    monkeypatch.setattr(costs, "free_bytes", lambda _: 10**12)
    costs_of(config(), capsys)
    monkeypatch.setattr(costs, "free_bytes", lambda _: 0.6 * needed[0])
    describe(config(), SPLITS)
    out = " ".join(capsys.readouterr().out.split())
    assert "a batch doesn't fit into memory; a batch of 8 questions does, and is measured." in out
    assert "per epoch" in out


def test_a_run_of_smaller_batches_ends_with_one_image(config: Callable[..., Config]) -> None:
    run = replace(config().run, batch_size_train=64, examples_per_image=8, accum_grad_iters=4)
    own, *smaller = costs.smaller_runs(run)
    assert own is run
    assert [each.batch_size_train for each in smaller] == [32, 16, 8, 8]
    assert smaller[-1].images_per_batch == 1
    assert all(each.accum_grad_iters == 1 for each in smaller)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["run.batch_size_train=16"], "a step takes about 16 questions: 16 per batch, about"),
        (["run.images_per_batch=1"], "per batch, about 1 image(s)"),
        (["run.batch_size_train=4096"], "1 per epoch; a step takes about 48 questions: 48 per"),
        (["run.accum_grad_iters=100"], "a step takes about 48 questions: 16 per batch"),
    ],
)
def test_the_plan_tells_the_real_size_of_a_step(
    config: Callable[..., Config], options: list[str], expected: str
) -> None:
    cfg = config(*options)
    with prepared(cfg, SPLITS, load_weights=False) as parts:
        plan = TrainingPlan.of(cfg.run, parts.datasets)
    assert expected in str(plan.facts())
    taken = [batch.global_size for batch in plan.batches]
    assert plan.examples_per_epoch == pytest.approx(sum(taken))


def test_without_data_and_tokenizer_the_cost_is_estimated_and_then_both_are_asked_for(
    config: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "STEPS", 2)
    sizes = {split: PublishedSplit(60, 12, 5) for split in SPLITS}
    monkeypatch.setattr("lavis_ext.datasets.gqa.builder.BALANCED", sizes)
    asked = []

    def unreachable(_: Any, name: str, **__: Any) -> Any:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    absent = [
        f"datasets.gqa_fusion.root={tmp_path / 'absent'}",
        "datasets.gqa_fusion.subset=balanced",
        "model.streams.grid.weights=nobody/no-such-model",
        "model.streams.grid.tokenizer=nobody/no-such-model",
        "model.streams.grid.vocab_size=1000",
    ]
    with pytest.raises(UserError, match=r"\d of the \d+ files") as ended:
        describe(config(*absent), SPLITS)
    out = capsys.readouterr().out
    assert "datasets.gqa_fusion isn't on this machine: made-up questions, as many as" in out
    assert "Answer vocabulary: 5 answers" in out
    assert "black images, so without the time of reading images" in out
    assert "per epoch" in out
    assert str(tmp_path / "absent") in str(ended.value)
    assert "model.streams.grid.tokenizer" in str(ended.value)
    assert asked == ["nobody/no-such-model"], "weights and tokenizer of one model: asked once"
    assert not list(tmp_path.rglob("*"))


def test_data_of_unknown_size_is_needed_for_an_estimate(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    absent = config(
        f"datasets.gqa_fusion.root={tmp_path / 'absent'}", "datasets.gqa_fusion.subset=all"
    )
    with pytest.raises(UserError, match="there is no folder"):
        describe(absent, SPLITS)


def test_two_processes_measure_together_and_one_reports(tiny_arguments: list[str]) -> None:
    done = torchrun(2, "train.py", "--dry-run", *tiny_arguments, *TINY_MODEL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es); random weights") == 1
    assert "2 process(es), 1 batch(es) per step" in done.stdout


def measured(config: Config, **limits: Any) -> tuple[MeasuredSteps, list[bool]]:
    """Measured steps, and whether each parameter is unchanged."""
    with prepared(config, ["train"], load_weights=False) as parts:
        before = [parameter.clone() for parameter in parts.model.parameters()]
        plan = TrainingPlan.of(config.run, parts.datasets)
        stepper = Stepper.for_timing(parts.task, parts.model, config.run, parts.device)
        found = measure_steps(
            config.run, stepper, parts.datasets["train"], plan.batches, parts.device, **limits
        )
    after = parts.model.parameters()
    return found, [torch.equal(old, new) for old, new in zip(before, after, strict=True)]


def test_measured_steps_change_no_weight_and_may_exceed_an_epoch(
    config: Callable[..., Config],
) -> None:
    found, same = measured(config(), budget=60.0, at_most=5)
    assert all(same)
    assert len(found.examples) == 5
    assert sum(found.examples[:3]) == 48, "an epoch"
    assert len(found.rates) == 4
    assert 0 <= found.waiting_share < 1
    assert all(
        waiting <= seconds for waiting, seconds in zip(found.waiting, found.seconds, strict=True)
    )


def test_one_step_is_measured_however_small_the_budget(config: Callable[..., Config]) -> None:
    found, _ = measured(config("run.accum_grad_iters=2"), budget=0.0, at_most=5)
    assert len(found.examples) == 1
    assert 16 < found.examples[0] < 48, "two batches"
    assert found.unsettled == 0
    found, _ = measured(config(), budget=0.0, at_least=3)
    assert len(found.seconds) == 3


def on_meta(fusion: dict[str, Any] | None = None) -> PnpVqaFusion:
    with torch.device("meta"):
        model = make_model({"itm": {"weight": 1.0}, "answer": HEAD}, fusion)
    freeze_all_but(model, ["fusion.*", "objectives.*"])
    train_mode(model)
    return model


def test_flops_add_up_and_image_flops_cover_encoders_fusion_keys_and_values() -> None:
    model, samples = on_meta(), make_samples()
    found = count_flops(model, samples, ON_HOST)
    assert (found.images, found.examples) == (4, 8)
    whole = make_model({"itm": {"weight": 1.0}, "answer": HEAD})
    freeze_all_but(whole, ["fusion.*", "objectives.*"])
    train_mode(whole)
    passes = count_passes(lambda batch: total_loss(whole(batch)), samples)
    forward, total = passes.forward, passes.both
    with counted_flops() as counter:
        whole.fuse(samples)
    seen = counter.get_total_flops() / 4
    assert found.an_example * 8 == pytest.approx(total)
    assert found.image.forward * 4 + found.example.forward * 8 == pytest.approx(forward)
    tokens, width, head = 17, 32, 32
    # Of two layers of the text encoder, and of the answer head with its projection of the tokens.
    keys_and_values = 2 * tokens * width * (2 * 2 * width + head + 2 * head)
    assert found.image.forward == pytest.approx(seen + keys_and_values, rel=0.02)


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def attend_where(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(1, 6, device=x.device) > 0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "shape", "forward"),
    [
        (attend, (2, 3, 6, 8), 2 * 2 * 2 * 3 * 6 * 6 * 8),
        (attend_where, (2, 3, 6, 8), 2 * 2 * 2 * 3 * 6 * 6 * 8),
        (nn.Linear(8, 5), (2, 6, 8), 2 * 2 * 6 * 8 * 5),
        (nn.Conv2d(3, 5, 2, stride=2), (2, 3, 8, 8), 2 * 2 * 16 * 5 * 3 * 4),
        (nn.MultiheadAttention(8, 2, batch_first=True), (2, 6, 8), 2 * 2 * 6 * (4 * 64 + 2 * 48)),
    ],
    ids=["attention", "masked attention", "linear", "convolution", "multi-head attention"],
)
def test_attention_counts_as_matrix_products_for_any_kernel(
    layer: Any, shape: tuple[int, ...], forward: int, dtype: torch.dtype, device: str
) -> None:
    if isinstance(layer, nn.Module):
        layer = copy.deepcopy(layer).to(dtype).to(device)
    x: Any = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)

    def loss(x: Any) -> Tensor:
        out = layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)
        return out.sum()

    passes = count_passes(loss, x)
    assert passes == Passes(forward, 2 * forward)


def test_stored_features_save_the_encoders_flops() -> None:
    samples = make_samples()
    live = count_flops(on_meta(), samples, ON_HOST)
    tokens: Any = {
        **{name: value for name, value in samples.items() if name != "images"},
        "tokens": {
            "grid": StoredTokens(torch.zeros(4, 17, 32), None, (4, 4)),
            "segmentation": StoredTokens(
                torch.zeros(4, (SIDE // 16) ** 2, 16), None, (SIDE // 16, SIDE // 16)
            ),
        },
    }
    stored = count_flops(on_meta(), tokens, ON_HOST)
    assert stored.encoders == 0 < live.encoders
    assert live.image.forward - stored.image.forward == pytest.approx(live.encoders)
    assert live.example.both == pytest.approx(stored.example.both)
    assert live.image.backward == pytest.approx(stored.image.backward)


def test_recomputing_activations_keeps_fewer_of_them() -> None:
    kept, recomputed = (
        count_flops(on_meta({**DIFNET, "recompute_activations": again}), make_samples(), ON_HOST)
        for again in (False, True)
    )
    assert recomputed.activation_bytes < kept.activation_bytes
    assert recomputed.image.backward > kept.image.backward


def test_an_evaluation_costs_the_forward_passes() -> None:
    flops = BatchFlops(Passes(10, 20), Passes(1, 2), 5, 2, 8, 0)
    assert flops.evaluation(3, 30) == 60
    assert replace(flops, images=4).an_example == 3 + 30 * 4 / 8
