"""The benchmarks of training compare like with like."""

import json
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import nothing_lost, plots, processes, same_accuracy, speed
from lavis_ext.config.loader import Config
from lavis_ext.runners.launch import started
from tests.runners.test_runner import BEST, TINY_MODEL, UNVALIDATED

pytestmark = pytest.mark.beyond_core


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    out = str(tmp_path_factory.mktemp("speed"))
    small = ["--small", "--images", "20", "--device", "cpu", "--threads", "1"]
    return speed.parse_arguments([out, *small, "--seconds", "0", "--questions-a-step", "1"])


def test_the_straightforward_way_gives_the_librarys_loss(given: Namespace) -> None:
    assert speed.largest_difference(given) < 1e-5


def test_variants_are_measured_as_ratios_and_drawn(given: Namespace) -> None:
    names = ("straightforward", "live", "stored")
    variants = [variant for variant in speed.ladder(1) if variant.name in names]
    runs = {variant.name: [speed.measure(given, variant)] for variant in variants}
    found = speed.summary(runs, variants, {"fp32": 1e11, "bf16": 1e11})
    plain, live, stored = (found[name] for name in names)
    assert plain["times_straightforward"] == 1
    ratio = live["examples_per_second"] / plain["examples_per_second"]
    assert live["times_straightforward"] == ratio > 1
    # Two passes through everything for each question; then sixteen share one; then no encoders.
    assert plain["flops_a_question"] > 4 * live["flops_a_question"]
    assert live["flops_a_question"] > stored["flops_a_question"]
    assert stored["share_of_peak"] == pytest.approx(
        stored["examples_per_second"] * stored["flops_a_question"] / 1e11
    )
    rows = speed.table(found, names).splitlines()
    assert len(rows) == 2 + len(names)
    figures = {"variants": found, "ladder": names, "model": "mini", "device": "cpu", "threads": 1}
    plots.draw_speed(figures, given.out / "speed.svg")
    drawn = (given.out / "speed.svg").read_text()
    assert "+ features stored" in drawn
    assert "Training mini on 1 core of a CPU" in drawn


def test_every_training_image_of_the_data_has_as_many_questions(given: Namespace) -> None:
    root = speed.make_data(given.out, given.images)
    records = json.loads((root / "questions" / "train_balanced_questions.json").read_text())
    images = [record["imageId"] for record in records.values()]
    assert {images.count(image) for image in images} == {speed.QUESTIONS_AN_IMAGE}


def test_training_the_straightforward_way_makes_the_same_weights(
    configured: Callable[..., Config], tiny_options: list[str]
) -> None:
    weights, curves = {}, {}
    for way in same_accuracy.WAYS:
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


def test_a_curve_leaves_validations_out_of_its_seconds(tmp_path: Path) -> None:
    figures = dict.fromkeys(same_accuracy.FIGURES, 0.5)
    lines = [
        {"kind": "train", "step": 5, "examples_per_second": 20.0},
        {"kind": "val", "step": 5, **figures},
        {"kind": "train", "step": 10, "examples_per_second": 10.0},
        {"kind": "val", "step": 10, **figures, "answer_accuracy": 0.75},
        {"kind": "val", "step": 10, **figures},  # the best weights once more
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


def test_the_largest_difference_of_two_trainings_is_found_and_shown() -> None:
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


def test_the_way_of_a_question_leads_from_the_reader_of_json_to_the_objectives(
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
