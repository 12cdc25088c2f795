"""Sharded models train and answer like whole ones."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.config.typed import typed
from lavis_ext.distributed.sharding import parameter_bytes
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.launch import started
from tests.distributed.test_processes import train
from tests.launching import torchrun
from tests.robustness.torture_jobs import differences, left_by
from tests.runners.test_runner import BEST, TINY_MODEL
from tests.tiny import make_model

pytestmark = pytest.mark.beyond_core

UNITS = [
    "fusion.encoder.layers.*",  # trained
    "streams.grid.blip.text_encoder.encoder.layer.*.intermediate",  # frozen
    "streams.segmentation.image_encoder.blocks.*",
]
SHARDED = ["run.sharding=fsdp2", f"run.shard_units=[{','.join(UNITS)}]"]


@pytest.fixture
def options(tiny_options: list[str]) -> list[str]:
    """Options of eight steps with two batches each."""
    return [
        *tiny_options,
        *TINY_MODEL,
        "model.fusion.dropout=0.1",
        "run.batch_size_train=4",
        "run.accum_grad_iters=2",
        "run.max_epoch=2",
        "run.log_freq=1",
        "run.save_every_steps=1",
        "run.max_grad_norm=0.5",
    ]


def ran(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


def losses(folder: Path) -> list[float]:
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def test_a_sharded_run_is_a_whole_one_and_resumes(options: list[str], tmp_path: Path) -> None:
    folders = []
    for name, more in (("whole", []), ("sharded", SHARDED)):
        ran(train(2, [*options, *more, f"run.output_dir={tmp_path}", f"run.name={name}"]))
        folders.append(tmp_path / name)
    whole, sharded = folders
    assert "sharded among 2 processes" in (sharded / "log.txt").read_text()
    assert len(losses(whole)) == 8
    assert losses(sharded) == pytest.approx(losses(whole), abs=1e-5)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    for split in ("val", "testdev"):
        assert metrics[1][split] == pytest.approx(metrics[0][split], abs=1e-5)
    predictions = [json.loads((f / "testdev_predictions.json").read_text()) for f in folders]
    ids = [sorted(each["questionId"] for each in every) for every in predictions]
    assert ids[0] == ids[1]
    weights = [load_file(folder / BEST) for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-4)

    cut = tmp_path / "cut"
    shutil.copytree(sharded, cut)
    (cut / "state_00000008.safetensors").unlink()
    (cut / "metrics.json").unlink()
    resume = ["run.name=cut", "run.resume=auto", f"run.output_dir={tmp_path}"]
    ran(train(2, [*options, *SHARDED, *resume]))
    assert differences(left_by(sharded), left_by(cut)) == []


def test_sharded_reader_and_captioner_give_the_same_answers() -> None:
    done = torchrun(2, "-m", "tests.distributed.sharding_job")
    ran(done)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2
    (trained,) = [each for each in map(json.loads, lines) if "differences" in each]
    assert trained["norm"] > 0.5, "clipped"
    assert len(trained["differences"]) > 20
    assert max(trained["differences"]) < 1e-5
    for result in map(json.loads, lines):
        assert result["same"]
        assert {name.split(".")[0] for name in result["units"]} == {"reader", "captioner"}
        saved = sum(result["whole"]) - sum(result["sharded"])
        assert saved == pytest.approx(result["blocks"] / 2, rel=0.05)


def test_sharding_needs_several_processes(
    configured: Callable[..., Config], options: list[str]
) -> None:
    cfg = configured(*options, *SHARDED)
    with (
        pytest.raises(UserError, match=r"there is only one; start several"),
        started(cfg, ["train"]),
    ):
        pass
    with pytest.raises(UserError, match=r"run\.sharding and run\.compile can't be combined"):
        configured(*options, *SHARDED, "run.compile=true")


@pytest.mark.parametrize(
    ("units", "says"),
    [
        (["*"], r"streams holds modules without being called .* \(streams\.grid, streams\.segm"),
        (["objectives"], r"objectives holds modules .* name those in it \(objectives\.head\)"),
    ],
)
def test_units_that_only_hold_modules_are_rejected(units: list[str], says: str) -> None:
    with pytest.raises(UserError, match=rf"run\.shard_units: {says}"):
        parameter_bytes(make_model({"head": None}), units)


def test_units_without_sharding_are_rejected() -> None:
    with pytest.raises(UserError, match=r"run\.shard_units is set, but nothing is sharded"):
        typed(RunConfig, {"shard_units": ["fusion.*"]}, "run")


def test_units_that_are_not_called_are_explained(options: list[str]) -> None:
    more = ["run.sharding=fsdp2", "run.shard_units=[objectives.*]", "run.max_steps=1"]
    done = train(2, [*options, *more])
    assert done.returncode != 0
    assert "error: run.shard_units: parameters of a unit are used in " in done.stderr


def test_unknown_units_are_rejected_with_the_nearest(options: list[str]) -> None:
    done = train(2, [*options, "run.sharding=fsdp2", "run.shard_units=[fusion.encodr.layers.0]"])
    assert done.returncode != 0
    assert "run.shard_units: no module matches 'fusion.encodr.layers.0'. Nearest:" in done.stderr
    assert "fusion.encoder.layers.0" in done.stderr
