"""A sweep with train.py itself: killed, resumed by the same command, compared over images."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lavis_ext.sweep.__main__ import main
from tests.conftest import SMALL

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
STEPS = 6


def test_a_killed_sweep_resumes_from_the_state_of_its_run(
    tiny_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*tiny_options, "run.max_epoch=2", "run.log_freq=1", "run.save_every_steps=1"]
    arguments = ["--cfg-path", str(SMALL), "--name", "s", "--options", *options]
    arguments += ["--grid", "model.fusion.name=sum,first_only"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis_ext.sweep", *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
    )
    runs = tmp_path / "output" / "s" / "runs"
    deadline = time.monotonic() + 200
    while not list((runs / "fusion.name=sum").glob("state_*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    main(arguments)
    said = capsys.readouterr().out
    assert "fusion.name=sum: continues" in said
    assert "2 of 2 runs finished" in said
    output = (runs.parent / "output" / "fusion.name=sum.txt").read_text()
    assert "resuming after step" in output
    lines = [json.loads(each) for each in (runs / "fusion.name=sum/log.jsonl").open()]
    steps = [each["step"] for each in lines if each["kind"] == "train"]
    assert steps == [*range(1, STEPS + 1)], "no step is repeated, and none is left out"
    results = json.loads((runs.parent / "results.json").read_text())
    first, other = results["choices"]
    assert results["metric"]["name"] == "answer_accuracy"
    assert results["split"] == "val"
    assert other["difference"]["over"] == "images"
    assert other["difference"]["low"] <= other["mean"] - first["mean"]
    assert other["difference"]["high"] >= other["mean"] - first["mean"]
