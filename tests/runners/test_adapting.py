"""Runs with LoRA, and learning rates by pattern."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from lavis_ext import export
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.config.typed import typed
from lavis_ext.models import merge
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.runners.config import ParameterGroup, RunConfig
from lavis_ext.runners.flops import count_flops
from lavis_ext.runners.freezing import (
    freeze_all_but,
    train_mode,
    trained_parameters,
    trained_patterns,
)
from lavis_ext.runners.launch import started
from lavis_ext.runners.optimizer import (
    WarmupCosineLRScheduler,
    groups_table,
    make_optimizer,
    rates_and_decays,
    scale_rates,
)
from lavis_ext.runners.trainer import Stepper, Trainer
from tests.launching import Killed
from tests.models.test_lora import make
from tests.robustness.torture_jobs import differences, left_by
from tests.tiny import make_samples

PROJECT = Path(__file__).parents[2]
LORA = PROJECT / "projects" / "pnp-vqa" / "train" / "mini_lora.yaml"
EVAL = PROJECT / "projects" / "pnp-vqa" / "eval" / "gqa_small_eval.yaml"
SPLITS = ["train", "val", "testdev"]
Configured = Callable[..., Config]


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    """Six steps of ``mini_lora.yaml`` on 40 images."""
    options = [
        *tiny_options,
        "run.max_epoch=2",
        "run.max_steps=null",
        "run.val_every_steps=null",
        "run.small_val_size=48",
        "run.small_test_size=48",
        "run.warmup_steps=0",
        "run.save_every_steps=1",
        "run.log_freq=1",
        "run.examples_per_image=2",
        "datasets.gqa_fusion.type=mini",
    ]
    return lambda *more: configured(*options, *more, cfg_path=LORA)


def train(cfg: Config) -> Trainer:
    with started(cfg, SPLITS) as runner:
        runner.train()
    return runner


def evaluated(
    weights: Path, options: list[str], output: Path
) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Predictions and metrics of a new process."""
    keys = ("datasets.gqa_fusion.mini_gqa", "run.device", "run.sample_by")
    done = subprocess.run(
        [
            *(sys.executable, "evaluate.py", "--cfg-path", str(EVAL), "--options"),
            *(option for option in options if option.startswith(keys)),
            f"model.fusion_weights={weights}",
            *("run.batch_size_eval=16", "run.num_workers=0", "run.valid_splits=[]"),
            *("run.small_test_size=48", f"run.output_dir={output}"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = output.iterdir()
    predictions = json.loads((folder / "testdev_predictions.json").read_text())
    return predictions, json.loads((folder / "metrics.json").read_text())["testdev"]


@pytest.mark.beyond_core
def test_lora_on_the_last_two_blocks_of_the_miniature(
    config: Configured, tiny_options: list[str], tmp_path: Path
) -> None:
    runner = train(config())
    path = runner.output_dir / "fusion_encoder_best.safetensors"
    assert path.stat().st_size < 1e6
    state = TrainedWeights.load(path).state
    adapted = {name.split(".lora_")[0] for name in state if ".lora_" in name}
    assert len(adapted) == 2 * 4 + 2 * 10  # qkv, projection, two of the MLP; two attentions, MLP
    assert all(torch.any(state[name] != 0) for name in state if ".lora_B." in name)

    trained = json.loads((runner.output_dir / "testdev_predictions.json").read_text())
    metrics = json.loads((runner.output_dir / "metrics.json").read_text())["testdev"]
    loaded, same = evaluated(path, tiny_options, tmp_path / "loaded")
    assert loaded == trained
    assert same["loss"] == metrics["loss"]

    plain = tmp_path / "merged.safetensors"
    merge.main([str(path), str(plain)])
    assert not any("lora" in name for name in TrainedWeights.load(plain).state)
    merged, close = evaluated(plain, tiny_options, tmp_path / "merged")
    assert close["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert merged == trained

    exported = tmp_path / "blip"
    export.main(["--weights", str(path), "--to", "transformers", str(exported)])
    names = load_file(exported / "model.safetensors").keys()
    assert names
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_a_killed_and_resumed_adapting_run_equals_an_undisturbed_one(
    config: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    step = Stepper.step

    def killing(self: Stepper, group: Any, epoch: int, steps: int) -> torch.Tensor:
        if steps == 4:
            raise Killed
        return step(self, group, epoch, steps)

    again = ("run.name=here", "run.resume=auto")
    monkeypatch.setattr(Stepper, "step", killing)
    with pytest.raises(Killed):
        train(config(*again))
    monkeypatch.setattr(Stepper, "step", step)
    assert differences(undisturbed, left_by(train(config(*again)).output_dir)) == []


def test_flops_of_backward_passes_through_adapted_parts_are_counted() -> None:
    passes = []
    for entries in ([], [{"modules": ["streams.grid.blip.vision_model.*"], "rank": 1}]):
        with torch.device("meta"):
            model = make(entries)
        freeze_all_but(model, ["fusion.*"])
        train_mode(model)
        passes.append(count_flops(model, make_samples(), ("image_index",)).image)
    plain, adapted = passes
    # Gradients pass the frozen weights on their way to the updates.
    forward, backward = adapted.forward - plain.forward, adapted.backward - plain.backward
    assert backward > 10 * forward > 0


def test_every_pattern_of_the_page_on_adapting_matches_the_miniature() -> None:
    text = (PROJECT / "docs" / "adapting.md").read_text(encoding="utf-8")
    blocks = [OmegaConf.create(each) for each in re.findall("```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) == 4
    for given in blocks:
        mini = OmegaConf.merge({"model_type": "mini"}, given.get("model") or {})
        section = PnpVqaFusion.default_section(mini)
        objectives = OmegaConf.create({"objectives": {"itm": {}, "head": {}}})
        section = OmegaConf.merge(section, objectives, given.get("model") or {})
        with torch.device("meta"):
            model = PnpVqaFusion.from_config(section, load_weights=False)
        run = typed(RunConfig, given.get("run") or {}, "run")
        freeze_all_but(model, trained_patterns(model, run.trainable))
        rates = rates_and_decays(list(trained_parameters(model)), run)
        assert len({*rates.values()}) == 1 + len(run.parameter_groups or ())
        units = run.shard_units or []
        names = [name for name, _ in model.named_modules()]
        assert all(any(fnmatchcase(name, unit) for name in names) for unit in units)


def test_stored_features_of_an_adapted_encoder_are_rejected(
    config: Configured, tmp_path: Path
) -> None:
    cfg = config("run.features.make=true", f"run.features.root={tmp_path / 'features'}")
    with (
        pytest.raises(UserError, match=r"model\.lora adapts the encoder of the grid stream"),
        started(cfg, SPLITS),
    ):
        pass
    assert not (tmp_path / "features").exists()


# --- rates by pattern ----------------------------------------------------------------------------


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(3, 3), "last": nn.Linear(3, 3)})


def test_groups_have_their_rates_and_decays_and_follow_the_schedule_alike() -> None:
    model = two_layers()
    run = RunConfig(
        init_lr=1e-3,
        weight_decay=0.1,
        parameter_groups=[
            ParameterGroup(["first.*"], init_lr=1e-4),
            ParameterGroup(["last.weight"], weight_decay=0.0),
        ],
    )
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(parameters, run)
    schedule = WarmupCosineLRScheduler(
        optimizer,
        max_steps=100,
        init_lr=1e-3,
        min_lr=0.0,
        warmup_steps=0,
        warmup_start_lr=0.0,
        max_epoch=1,
    )
    names = {parameter: name for name, parameter in parameters.items()}
    for step, share in ((0, 1.0), (50, 0.5), (50, 0.5)):
        schedule.step(cur_epoch=0, cur_step=step)
        scale_rates(optimizer)
        found = {
            names[p]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }
        assert found == {
            "first.weight": (pytest.approx(share * 1e-4), 0.1),
            "first.bias": (pytest.approx(share * 1e-4), 0.0),
            "last.weight": (pytest.approx(share * 1e-3), 0.0),
            "last.bias": (pytest.approx(share * 1e-3), 0.0),
        }
    rows = [line.split() for line in str(groups_table(parameters, run)).splitlines()[1:]]
    assert rows == [["0.0001", "0.1", "12"], ["0.001", "0", "9"], ["0.001", "0.1", "3"]]


def test_a_group_changes_only_its_own_parameters() -> None:
    changed = []
    for groups in ([], [ParameterGroup(["first.*"], init_lr=0.5)]):
        model = two_layers()
        parameters = dict(model.named_parameters())
        optimizer = make_optimizer(parameters, RunConfig(init_lr=0.1, parameter_groups=groups))
        scale_rates(optimizer)
        sum(p.sum() for p in parameters.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        changed.append({name: p.detach().clone() for name, p in parameters.items()})
    differing = {n for n in changed[0] if not torch.equal(changed[0][n], changed[1][n])}
    assert differing == {"first.weight", "first.bias"}


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (
            [ParameterGroup(["frist.*"], init_lr=1e-4)],
            r"run\.parameter_groups\[0\]\.parameters: no trained parameter matches 'frist\.\*'\. "
            r"Nearest: first\.bias",
        ),
        (
            [ParameterGroup(["first.*"]), ParameterGroup(["*.weight"])],
            r"run\.parameter_groups\[0\] and run\.parameter_groups\[1\] both match first\.weight",
        ),
    ],
)
def test_wrong_groups_are_rejected(groups: list[ParameterGroup], says: str) -> None:
    with pytest.raises(UserError, match=says):
        rates_and_decays(["first.weight", "first.bias"], RunConfig(parameter_groups=groups))
