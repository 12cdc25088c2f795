"""A run from its first step to its last file."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.samplers import BatchRows, TrainBatches
from lavis_ext.runners import reporting, run_log
from lavis_ext.runners.launch import started
from lavis_ext.runners.trainer import Trainer
from tests.tiny import BLIP, EFFICIENT_SAM

SPLITS = ["train", "val", "testdev"]
BEST = "fusion_encoder_best.safetensors"
TINY_MODEL = [
    *(f"model.streams.grid.{k}={v}" for k, v in BLIP.items() if k != "weights"),
    *(f"model.streams.segmentation.{k}={v}" for k, v in EFFICIENT_SAM.items() if k != "weights"),
    "model.fusion.d_model=32",
    "model.fusion.dropout=0",
    "model.objectives.answer.width=32",
    "model.objectives.answer.layers=1",
    "model.objectives.itm.weight=0.5",
    "model.objectives.head.width=32",
    "run.max_steps=null",
    "run.val_every_steps=null",
]

UNVALIDATED = ["run.valid_splits=[]", "run.patience=null"]

Configured = Callable[..., Config]


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    """The tiny run's config with additional options."""
    return lambda *options: configured(*tiny_options, *TINY_MODEL, *options)


def facts_of(page: Path) -> dict[str, str]:
    """Labels and texts of a report's head."""
    (found,) = re.findall(r'id="content">(.*?)</script>', page.read_text(), re.DOTALL)
    return dict(json.loads(found)["facts"])


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["kind"] == kind]


def test_a_run_writes_a_complete_folder_and_its_weights_evaluate_equally(
    config: Configured, configured: Configured, tiny_options: list[str], tmp_path: Path
) -> None:
    cfg = config("run.max_epoch=2", "run.log_freq=1")
    with started(cfg, SPLITS) as runner:
        trained = runner.train()
    folder, model = runner.output_dir, runner.model
    assert folder.parent == tmp_path / "output"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "log.txt",
        "log.jsonl",
        "run.lock",
        "status.json",
        BEST,
        "state_00000006.safetensors",
        "val_predictions.json",
        "testdev_predictions.json",
        "val_scores.json",
        "testdev_scores.json",
        "val_by_image.json",
        "testdev_by_image.json",
        "metrics.json",
        "report.html",
    }
    assert json.loads((folder / "metrics.json").read_text()) == trained
    assert trained.keys() == {"val", "testdev"}
    assert {"answer_accuracy", "answer_accuracy_query", "baseline_form", "itm_accuracy"} <= trained[
        "testdev"
    ].keys()
    predictions = json.loads((folder / "testdev_predictions.json").read_text())
    ids = runner.datasets["testdev"].table.columns["question_id"].to_pylist()
    assert sorted(entry["questionId"] for entry in predictions) == sorted(ids)
    assert all(entry.keys() == {"questionId", "prediction"} for entry in predictions)
    assert [entry["step"] for entry in lines(folder)] == [1, 2, 3, 4, 5, 6]
    environment = json.loads((folder / "environment.json").read_text())
    assert {"torch", "transformers", "salesforce-lavis"} <= environment["packages"].keys()

    weights = [f"model.fusion_weights={folder / BEST}"]
    evaluation = configured(
        *(option for option in tiny_options if "mini_gqa" in option or "output_dir" in option),
        "run.small_train_size=48",
        "run.sample_by=examples",
        "run.batch_size_eval=7",
        "run.num_workers=0",
        *weights,
        cfg_path="projects/pnp-vqa/eval/gqa_small_eval.yaml",
    )
    with started(evaluation, ["val", "testdev"]) as runner:
        from_file = runner.evaluate()
    of_training, of_evaluation = (
        facts_of(each / "report.html") for each in (folder, runner.output_dir)
    )
    some, total = map(int, re.findall(r"[\d,]+", of_training["trained"].replace(",", "")))
    assert 0 < some <= total == sum(each.numel() for each in model.parameters())
    count = sum(tensor.numel() for tensor in load_file(folder / BEST).values())
    assert of_evaluation["trained"] == f"{count:,} parameters and buffers"
    for facts in (of_training, of_evaluation):
        assert float(facts["learning rate"]) == cfg.run.init_lr
    assert of_training["batch"] == "16 questions a step"
    assert of_training["steps"].startswith("6 of 6, best weights of step ")
    assert of_training["training took"].endswith(" s")
    assert of_evaluation["batch of a process"] == "16"
    for split, metrics in trained.items():
        assert from_file[split].keys() == metrics.keys()
        for name, value in metrics.items():
            assert from_file[split][name] == pytest.approx(value, abs=1e-5), name


def test_early_stopping_exports_the_best_weights_bit_for_bit(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/traps.md, 5: later weights must not overwrite the best ones."""
    scripted = iter([0.30, 0.50, 0.50, 0.49, 0.40, 0.99, 0.99])
    states: list[dict[str, torch.Tensor]] = []

    def scripted_epoch(runner: Trainer, split_name: str, **_: Any) -> dict[str, float]:
        state = runner.model.exported_state()
        states.append({name: tensor.clone() for name, tensor in state.items()})
        return {"answer_accuracy": next(scripted)}

    monkeypatch.setattr(Trainer, "eval_epoch", scripted_epoch)
    cfg = config("run.max_epoch=9", "run.val_every_steps=1", "run.patience=3", "run.test_splits=[]")
    with started(cfg, ["train", "val"]) as runner:
        runner.train()
    # 0.30, then the best, then three without gain; the sixth is the final report of the best.
    assert len(states) == 6
    exported = load_file(runner.output_dir / BEST)
    assert exported.keys() == states[1].keys()
    assert all(torch.equal(exported[name], states[1][name]) for name in exported)
    assert not all(torch.equal(exported[name], states[4][name]) for name in exported)
    weights = TrainedWeights.load(runner.output_dir / BEST, tensors=False)
    assert (weights.metric, weights.value, weights.step) == ("answer_accuracy", 0.5, 2)
    # The final report is of the best weights, not the last ones.
    assert all(torch.equal(states[5][name], states[1][name]) for name in exported)
    last = load_file(runner.output_dir / "state_00000005.safetensors")
    name = "fusion.encoder.layers.0.mhatt.attention.fc_q.weight"
    assert torch.equal(last[f"model.{name}"], states[4][name])
    assert last[f"optimizer.{name}.exp_avg"].shape == states[4][name].shape


def test_a_first_validation_that_is_no_number_is_not_the_best(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = iter([float("nan"), 0.5, 0.5])
    monkeypatch.setattr(Trainer, "eval_epoch", lambda *_, **__: {"answer_accuracy": next(scripted)})
    cfg = config("run.max_steps=2", "run.val_every_steps=1", "run.test_splits=[]")
    with started(cfg, ["train", "val"]) as runner:
        runner.train()
    assert TrainedWeights.load(runner.output_dir / BEST, tensors=False).step == 2


def test_only_trainable_parameters_change_and_frozen_parts_stay_in_eval_mode(
    config: Configured,
) -> None:
    """docs/traps.md, 7."""
    cfg = config("run.trainable=[fusion.*]", "run.max_steps=2")
    with started(cfg, SPLITS) as runner:
        before = {name: p.clone() for name, p in runner.model.named_parameters()}
        modes: list[tuple[bool, ...]] = []
        step = runner.task.train_step

        def watched(model: Any, samples: Any) -> Any:
            parts = (model.streams["grid"], model.streams["segmentation"], model.fusion)
            modes.append(tuple(part.training for part in parts))
            return step(model, samples)

        runner.task.train_step = watched
        runner.train()
    assert modes == [(False, False, True)] * 2
    exported = load_file(runner.output_dir / BEST)
    changed = {name for name, value in before.items() if not torch.equal(exported[name], value)}
    assert changed
    assert all(name.startswith(("fusion.", "objectives.")) for name in changed)


def test_accumulating_two_batches_equals_one_of_twice_the_size(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for size in (8, 16):

        def in_their_order(batches: TrainBatches, size: int = size) -> Iterator[BatchRows]:
            for rows in np.split(np.arange(48), 48 // size):
                yield BatchRows(rows, batches.epoch, size)

        monkeypatch.setattr(TrainBatches, "__iter__", in_their_order)
        monkeypatch.setattr(TrainBatches, "__len__", lambda _, size=size: 48 // size)
        cfg = config(
            f"run.accum_grad_iters={16 // size}", "run.log_freq=1", "run.max_epoch=2", *UNVALIDATED
        )
        with started(cfg, SPLITS) as runner:
            runner.train()
        losses.append([entry["loss"] for entry in lines(runner.output_dir)])
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_compiled_and_eager_runs_have_equal_losses(config: Configured) -> None:
    losses = []
    for compiled in (False, True):
        torch.compiler.reset()
        options = [f"run.compile={compiled}", "run.compile_backend=eager", "run.max_steps=3"]
        with started(config(*options, "run.log_freq=1", "run.trainable=[fusion.*]"), SPLITS) as r:
            r.train()
        losses.append([entry["loss"] for entry in lines(r.output_dir)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_compiling_without_a_compiler_is_the_users_error(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with (
        pytest.raises(UserError, match=r"run\.compile: .* no no-such-compiler\. Install"),
        started(config("run.compile=true"), SPLITS) as runner,
    ):
        runner.train()


def test_a_slow_loader_is_reported(config: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    load = GqaFusionDataset.__getitems__

    def slowly(dataset: GqaFusionDataset, batch: BatchRows) -> Any:
        time.sleep(0.5)
        return load(dataset, batch)

    monkeypatch.setattr(GqaFusionDataset, "__getitems__", slowly)
    with started(config("run.log_freq=1", "run.max_steps=2", *UNVALIDATED), SPLITS) as runner:
        runner.train()
    assert lines(runner.output_dir)[-1]["waiting_for_data"] > 0.1  # a busy machine computes slowly
    assert "waiting for data" in (runner.output_dir / "log.txt").read_text()


def test_runs_are_equal_with_equal_seeds_and_differ_with_others(config: Configured) -> None:
    runs = []
    for seed in (1, 1, 2):
        with started(config(f"run.seed={seed}", "run.log_freq=1", "run.max_steps=2"), SPLITS) as r:
            r.train()
        runs.append([entry["loss"] for entry in lines(r.output_dir)])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "validated", "steps"),
    [
        ([], [3], 3),
        (["run.max_epoch=3"], [3, 6, 9], 9),
        (["run.max_epoch=3", "run.max_steps=4"], [3, 4], 4),
        (["run.max_epoch=3", "run.val_every_steps=2", "run.max_steps=5"], [2, 4, 5], 5),
    ],
)
def test_validation_runs_at_its_interval_and_after_the_last_step(
    config: Configured, options: list[str], validated: list[int], steps: int
) -> None:
    with started(config(*options, "run.test_splits=[]", "run.log_freq=1"), ["train", "val"]) as r:
        r.train()
    entries = [entry["step"] for entry in lines(r.output_dir, "val")]
    assert entries[:-1] == validated  # the last one reports the best
    assert lines(r.output_dir)[-1]["step"] == steps
    assert r.progress.validations == len(validated)
    assert r.plan.validations == len(validated) + 1


def test_a_run_without_validation_exports_its_last_weights(config: Configured) -> None:
    with started(config(*UNVALIDATED), ["train", "testdev"]) as runner:
        runner.train()
        state = runner.model.exported_state()
    exported = load_file(runner.output_dir / BEST)
    assert all(torch.equal(exported[name], state[name]) for name in exported)


def test_no_periodic_files_unless_asked(config: Configured) -> None:
    cfg = config("run.save_freq=2", "run.max_epoch=4", "run.small_train_size=16")
    with started(cfg, SPLITS) as runner:
        runner.train()
    kept = sorted(path.name for path in runner.output_dir.glob("*epoch*"))
    assert kept == ["fusion_encoder_epoch2.safetensors", "fusion_encoder_epoch4.safetensors"]


def test_runs_of_the_same_second_have_folders_of_their_own(config: Configured) -> None:
    folders = set()
    for _ in range(3):
        with started(config(), SPLITS) as runner:
            folders.add(runner.output_dir)
    assert len(folders) == 3


def test_an_unreadable_image_ends_the_run_with_its_name(
    config: Configured, mini_gqa: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (mini_gqa / "images").iterdir():
        (images / path.name).write_bytes(
            b"no picture" if path.stem.endswith("3") else path.read_bytes()
        )
    cfg = config(f"datasets.gqa_fusion.images={images}", "run.num_workers=1")
    with (
        pytest.raises(UserError, match=r"images.*\d+\.\w+: not a supported image"),
        started(cfg, SPLITS) as runner,
    ):
        runner.train()


def test_more_processes_than_questions_are_rejected_before_a_folder_is_made(
    config: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lavis_ext.distributed.world_size", lambda: 64)
    monkeypatch.setattr("lavis_ext.datasets.questions.builder.gather", lambda items: items)
    with pytest.raises(UserError, match="48 questions for 64 processes"), started(config(), SPLITS):
        pass
    assert not (tmp_path / "output").exists()


def test_the_log_is_readable_and_goes_to_tensorboard_and_wandb(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = config("run.tensorboard=true", "run.wandb.mode=offline", "run.log_freq=1")
    with started(cfg, SPLITS) as runner:
        runner.train()
    folder = runner.output_dir
    text = (folder / "log.txt").read_text()
    assert "step 3/3  loss" in text
    assert "questions/s" in text
    assert "left" in text
    assert "best weights, of step 3" in text
    assert list(folder.glob("events.out.tfevents*"))
    assert list((folder / "wandb").glob("offline-run-*"))


def test_other_loggers_are_unchanged(config: Configured) -> None:
    handlers = list(logging.getLogger().handlers)
    run_log.set_up_logging(None, quiet=True)
    assert logging.getLogger().handlers == handlers


def test_a_report_tells_how_weights_were_trained_wherever_they_are() -> None:
    source = "packaged:miniature/fusion_encoder.safetensors"
    facts = reporting._facts_of_weights(source, "model.fusion_weights")
    assert {"trained", "learning rate", "steps"} <= facts.keys()
    assert not reporting._facts_of_weights("no/file.safetensors", "model.fusion_weights")
