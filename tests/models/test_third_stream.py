"""A third stream, added only in YAML, trains, stores features and is in the dry run."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
CONFIG = """
model:
  arch: pnp_vqa_fusion
  model_type: mini
  streams:
    texture: {encoder: timm, model: resnet18, weights: null, image_size: 64, output: features}
  objectives: {answer: {width: 32, heads: 2, layers: 1, vocabulary_size: 50}}
datasets: {gqa_fusion: {type: mini}}
run: {max_steps: 3, batch_size_train: 8, num_workers: 0, small_train_size: 40, log_freq: 1}
"""


def train(monkeypatch: pytest.MonkeyPatch, folder: Path, data: Path, *options: str) -> None:
    path = folder / "third.yaml"
    path.write_text(CONFIG)
    arguments = ["train.py", "--cfg-path", str(path)]
    arguments += [option for option in options if option.startswith("--")]
    arguments += ["--options", f"datasets.gqa_fusion.mini_gqa.root={data}"]
    arguments += [f"datasets.gqa_fusion.root={data}", "datasets.gqa_fusion.mini_gqa.images=40"]
    arguments += [f"run.output_dir={folder / 'output'}", "run.report=false", "run.device=cpu"]
    arguments += [option for option in options if not option.startswith("--")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(PROJECT / "train.py"), run_name="__main__")


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "output" / name / "log.jsonl").read_text().splitlines()
    entries = map(json.loads, lines)
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def test_a_third_stream_trains_live_and_on_stored_features(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mini_gqa: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = (f"run.features.root={tmp_path / 'features'}", "run.features.dtype=fp32")
    train(monkeypatch, tmp_path, mini_gqa, "--dry-run", *store)
    said = capfd.readouterr().out
    sizes = re.search(r"features +([\d.e-]+) GiB", said)
    assert sizes
    assert float(sizes[1]) > 0

    train(monkeypatch, tmp_path, mini_gqa, "run.name=live")
    train(monkeypatch, tmp_path, mini_gqa, "run.name=stored", *store, "run.features.make=true")
    streams = {path.name.split("-")[0] for path in (tmp_path / "features").iterdir()}
    assert streams == {"grid", "segmentation", "texture"}
    assert losses(tmp_path, "live") == pytest.approx(losses(tmp_path, "stored"), abs=1e-4)
