"""Several processes train as one does, and end by themselves."""

import json
import subprocess
from pathlib import Path

import pytest
from launching import torchrun
from test_runner import TINY_MODEL

PROJECT = Path(__file__).parents[1]
STEPS = 10


def train(processes: int, options: list[str]) -> subprocess.CompletedProcess[str]:
    small = "projects/pnp-vqa/train/gqa_small.yaml"
    return torchrun(processes, "train.py", "--cfg-path", small, "--options", *options)


def test_two_processes_train_as_one_with_the_same_global_batch(
    tiny_options: list[str], tmp_path: Path
) -> None:
    """DESIGN, trap 6: the job ends by itself after the last evaluation."""
    logged, figures, predictions = [], [], []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = train(
            processes,
            [
                *tiny_options,
                *TINY_MODEL,
                f"run.batch_size_train={16 // processes}",
                f"run.max_steps={STEPS}",
                "run.max_epoch=9",
                "run.val_every_steps=5",
                "run.log_freq=1",
                # A last batch of 5 questions, 3 on one process and 2 on the other.
                "run.small_train_size=37",
                f"run.output_dir={output}",
            ],
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        (folder,) = output.iterdir()
        entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        logged.append([entry["loss"] for entry in entries if entry["kind"] == "train"])
        figures.append(json.loads((folder / "metrics.json").read_text()))
        predictions.append(json.loads((folder / "testdev_predictions.json").read_text()))
        scores = json.loads((folder / "testdev_scores.json").read_text())
        assert scores["questions"] == scores["metrics"]["accuracy"]["count"] == len(predictions[-1])
        assert (folder / "report.html").exists()
    assert len(logged[0]) == STEPS
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)
    for split in ("val", "testdev"):
        assert figures[0][split] == pytest.approx(figures[1][split], abs=1e-3)
    by_id = [{p["questionId"]: p["prediction"] for p in each} for each in predictions]
    assert len(by_id[1]) == len(predictions[1]), "a question was predicted twice"
    assert by_id[0].keys() == by_id[1].keys()


def test_two_processes_train_compiled_as_one_does_uncompiled(
    tiny_options: list[str], tmp_path: Path
) -> None:
    losses = []
    compiled = ["run.compile=true", "run.compile_backend=eager"]
    for processes, options in ((1, []), (2, compiled)):
        output = tmp_path / str(processes)
        done = train(
            processes,
            [
                *tiny_options,
                *TINY_MODEL,
                f"run.batch_size_train={16 // processes}",
                "run.max_steps=3",
                "run.patience=null",
                "run.valid_splits=[]",
                "run.test_splits=[]",
                "run.log_freq=1",
                f"run.output_dir={output}",
                *options,
            ],
        )
        assert done.returncode == 0, done.stderr
        (folder,) = output.iterdir()
        lines = (folder / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_mistake_ends_all_processes_with_its_message(
    tiny_options: list[str], tmp_path: Path
) -> None:
    done = train(2, [*tiny_options, *TINY_MODEL, "run.trainable=[fision.*]"])
    assert done.returncode != 0
    ours = done.stderr[: done.stderr.index("Traceback")]  # torchrun adds its own
    assert "error: run.trainable: no parameter matches 'fision.*'. Did you mean 'fusion.*'?" in ours
    assert not (tmp_path / "output").exists()
