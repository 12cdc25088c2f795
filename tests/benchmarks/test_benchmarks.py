"""The benchmarks of training compare like with like."""

import json
import subprocess
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import (
    image_files,
    nothing_lost,
    plots,
    processes,
    same_accuracy,
    scale,
    speed,
)
from lavis_ext.config.loader import Config
from lavis_ext.runners.launch import started
from lavis_ext.runners.saved_steps import SavedSteps
from tests.runners.test_runner import BEST, TINY_MODEL, UNVALIDATED

pytestmark = pytest.mark.beyond_core


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    out = str(tmp_path_factory.mktemp("speed"))
    small = ["--small", "--images", "20", "--device", "cpu", "--threads", "1"]
    return speed.parse_arguments([out, *small, "--seconds", "0", "--questions-a-step", "1"])


def test_the_straightforward_loop_gives_the_librarys_loss(given: Namespace) -> None:
    assert speed.largest_difference(given) < 1e-5


def test_variants_are_measured_as_ratios_and_drawn(given: Namespace) -> None:
    names = ("straightforward", "live", "stored")
    variants = [variant for variant in speed.ladder(1) if variant.name in names]
    runs = {variant.name: [speed.measure(given, variant)] for variant in variants}
    found = speed.summary(runs, variants, {"fp32": 1e11, "bf16": 1e11})
    plain, live, stored = (found[name] for name in names)
    assert plain["times_straightforward"] == (1, 1, 1)
    assert "times_stricter" not in plain, "that variant wasn't measured"
    ratio = live["examples_per_second"] / plain["examples_per_second"]
    assert live["times_straightforward"] == (ratio, ratio, ratio)
    assert ratio > 1
    # Two passes through everything for each question; then sixteen share one; then no encoders.
    assert plain["flops_a_question"] > 4 * live["flops_a_question"]
    assert live["flops_a_question"] > stored["flops_a_question"]
    assert stored["share_of_peak"] == pytest.approx(
        stored["examples_per_second"] * stored["flops_a_question"] / 1e11
    )
    rows = speed.table(found, names).splitlines()
    assert len(rows) == 2 + len(names)
    metrics = {"variants": found, "ladder": names, "model": "mini", "device": "cpu", "threads": 1}
    plots.draw_speed(metrics, given.out / "speed.svg")
    drawn = (given.out / "speed.svg").read_text()
    assert "+ features stored" in drawn
    assert "Training mini on 1 core of a CPU" in drawn


def test_ratios_are_those_of_each_round_and_have_a_spread() -> None:
    ours, theirs = (
        [{"rates": [rate]} for rate in rates] for rates in ((8.0, 9.0, 20.0), (2, 3, 4))
    )
    found = speed.ratios(ours, theirs)
    assert found == (3, 4, 5)
    assert [speed.with_spread(each) for each in (found, (2, 2, 2), None)] == ["4 (3 to 5)", "2", ""]


def test_every_training_image_of_the_data_has_as_many_questions(given: Namespace) -> None:
    root = speed.make_data(given.out, given.images)
    records = json.loads((root / "questions" / "train_balanced_questions.json").read_text())
    images = [record["imageId"] for record in records.values()]
    assert {images.count(image) for image in images} == {speed.QUESTIONS_AN_IMAGE}


def test_the_straightforward_loop_trains_the_same_weights(
    configured: Callable[..., Config], tiny_options: list[str]
) -> None:
    weights, curves = {}, {}
    for way in same_accuracy.COMPARISONS["optimizations"]:
        options = [
            *(*tiny_options, *TINY_MODEL, *UNVALIDATED),
            "model.objectives.answer.dropout=0",
            "run.test_splits=[]",
            "run.small_train_size=16",
            "run.max_epoch=2",
            "run.log_freq=1",
            *same_accuracy.options_of(way, 16),
        ]
        with started(configured(*options), ["train"]) as runner:
            runner.train()
        weights[way] = load_file(runner.output_dir / BEST)
        losses = (runner.output_dir / "log.jsonl").read_text().splitlines()
        entries = map(json.loads, losses)
        curves[way] = [entry["loss"] for entry in entries if entry["kind"] == "train"]
    plain, fast = weights["straightforward"], weights["fast"]
    assert plain.keys() == fast.keys()
    assert curves["straightforward"] == pytest.approx(curves["fast"], abs=1e-5)
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, fast[name], atol=1e-4, rtol=1e-4, msg=name)


def test_seconds_of_a_curve_exclude_validation(tmp_path: Path) -> None:
    metrics = dict.fromkeys(same_accuracy.METRICS, 0.5)
    lines = [
        {"kind": "declared", "step": 0, "metrics": {}},
        {"kind": "train", "step": 5, "examples_per_second": 20.0},
        {"kind": "val", "step": 5, **metrics},
        {"kind": "train", "step": 10, "examples_per_second": 10.0},
        {"kind": "val", "step": 10, **metrics, "answer_accuracy": 0.75},
        {"kind": "val", "step": 10, **metrics},  # the best weights once more
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    points = same_accuracy.curve(tmp_path, 8)
    assert [(point["questions"], point["seconds"]) for point in points] == [(40, 2), (80, 6)]
    text = same_accuracy.table({"fast": [points, points]})
    assert "| fast | 80 | 6 ± 0 | 13.3 | 75.0 ± 0.0 % |" in text
    plots.draw_accuracy(
        {"straightforward": [], "fast": [[(1.0, 0.5)]]}, "title", tmp_path / "a.svg"
    )
    assert "seconds of training" in (tmp_path / "a.svg").read_text()


def test_the_largest_difference_of_two_runs_is_reported() -> None:
    both = ("before", "after")
    before = {1: {"loss": 2.0, "itm_loss": 0.7}, 2: {"loss": 1.5, "itm_loss": 0.6}}
    after = {1: {"loss": 2.0, "itm_loss": 0.7}, 2: {"loss": 1.5, "itm_loss": 0.600002}}
    differences = nothing_lost.largest_differences(before, after)
    assert differences == {1: 0.0, 2: pytest.approx(2e-6)}
    with pytest.raises(SystemExit, match="steps differ"):
        nothing_lost.largest_differences(before, {1: before[1]})
    speeds = {"examples_per_second": 10.0, "times_straightforward": 2.0}
    slower = {"examples_per_second": 9.0, "times_straightforward": 1.8}
    training = {"before": before, "after": after, "differences": differences}
    text = nothing_lost.table(
        {
            "training": {**training, "scores": {key: {"loss": 1.0} for key in both}},
            "import_seconds": {"before": 2.0, "after": 2.1},
            "speed": {
                "before": dict.fromkeys(nothing_lost.VARIANTS, speeds),
                "after": dict.fromkeys(nothing_lost.VARIANTS, slower),
            },
        }
    )
    assert "| 2 | 1.500000 | 1.500000 | 2.0e-06 |" in text
    assert "| live | 10 | 9 | 0.900 (differs) | 2 | 1.8 |" in text


def test_every_place_of_images_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    found = image_files.measured(tmp_path, 6)
    assert [*found][:2] == ["folder", "zip"]
    assert [*found][-2:] == ["address, from the cache", "http, not cached"]
    assert all(each["images_a_second"] > 0 for each in found.values())
    assert image_files.opening(tmp_path, 50)["images"] == 50


def test_an_evaluation_that_is_stopped_is_measured_until_then(
    configured: Callable[..., Config],
    tiny_options: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = configured(
        *(*tiny_options, *TINY_MODEL, "run.max_steps=1", "run.report=false", "task.resamples=0"),
    )
    with started(cfg, ["train", "val"]) as runner:
        runner.train()
    answered = []
    add = SavedSteps.add
    monkeypatch.setattr(
        SavedSteps, "add", lambda self, *rest: (answered.append(rest), add(self, *rest))
    )
    options = [f"model.fusion_weights={runner.output_dir / BEST}", "run.batch_size_eval=2"]
    data = [each for each in tiny_options if each.startswith(("datasets.", "run.output_dir"))]
    path = "projects/pnp-vqa/eval/gqa_small_eval.yaml"
    one = partial(configured, *data, *options, "run.name=a", "run.resume=auto", cfg_path=path)
    seconds, saving = scale.seconds_of(one(), 1, "val")
    assert 0 < saving < seconds
    assert len(answered) == 1
    scale.seconds_of(one(), None, "val")
    assert len(answered) > 2


def test_a_question_passes_from_the_json_reader_to_the_objectives(
    tmp_path: Path,
) -> None:
    """In a process of its own: the profile function would slow all that comes after."""
    run = ["-m", "benchmarks.one_question"]
    environment = processes.environment(threads=1) | {"TMPDIR": str(tmp_path)}
    text = subprocess.run(
        processes.command(run), env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    handed = [line.split()[-1] for line in text.splitlines() if line.startswith("*")]
    assert "RecordFile.__iter__" in handed
    assert "PictureDataset.__getitems__" in handed
    assert "ItmObjective.forward" in handed
    assert "BlipEncoder.encode" not in handed
    assert "BlipEncoder.encode" in text
