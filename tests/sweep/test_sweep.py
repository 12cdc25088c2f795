"""Sweeps with a program that stands in for train.py: which runs start, and what is reported."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lavis_ext.common.locks import Lock
from lavis_ext.evaluation.by_image import ByImage
from tests.sweep.conftest import FAKE, Sweep

PROJECT = Path(__file__).parents[2]
RATES = "run.init_lr=1e-3,1e-4"
SWEEP = """
import sys
from pathlib import Path
from lavis_ext.sweep import processes
from lavis_ext.sweep.__main__ import main
processes.train_program = lambda: Path(sys.argv[1])
main(sys.argv[2:])
"""
SweepOf = Callable[..., Sweep]


def test_all_runs_are_trained_once_and_compared_with_the_first_choice(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES, "run.seed=1,2")
    values = {"init_lr=1e-3,seed=1": 0.50, "init_lr=1e-3,seed=2": 0.60}
    sweep.plans(values={**values, "init_lr=1e-4,seed=1": 0.55, "init_lr=1e-4,seed=2": 0.75})
    assert sweep.run() == 0
    said = capsys.readouterr().out
    assert re.search(r"1e-3 +2 +55\.0 % +7\.1 +-", said), said
    assert re.search(r"1e-4 +2 +65\.0 % +14\.1 +\+10\.0", said), said
    assert "4 of 4 runs finished" in said
    assert "over seeds only" in said
    assert "| 1e-4 | 2 | 65.0 % | 14.1 | +10.0 |" in (sweep.path / "sweep.md").read_text()
    first, other = sweep.results()["choices"]
    assert first["difference"] is None
    assert other["difference"]["value"] == pytest.approx(0.1)
    assert other["difference"]["over"] == "seeds"
    assert sweep.run() == 0
    assert len(sweep.attempts) == 4, "finished runs aren't repeated"


def test_choices_stand_beside_a_question_only_answerer(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 100 questions the answerer knows 50; the first choice 20 more, the second the same."""
    sweep = sweep_of(RATES, "run.seed=1,2")
    blind = np.repeat([1.0, 0.0], 50)
    seeing = np.repeat([1.0, 0.0], [70, 30])
    images = [f"{n:03d}" for n in range(100)]
    for rate, right in (("1e-3", seeing), ("1e-4", blind)):
        for seed in (1, 2):
            folder = sweep.path / "runs" / f"init_lr={rate},seed={seed}"
            folder.mkdir(parents=True)
            values = {"answer_accuracy": right}
            of = ByImage.of(values, images, {"answer_accuracy": blind})
            of.write(folder / "val_by_image.json")
            sweep.plan["values"][folder.name] = float(right.mean())
    sweep.plans()
    assert sweep.run() == 0
    said = capsys.readouterr().out
    assert re.search(r"1e-3 .* 50\.0 % +\+20\.0 +\+1\d\.\d to \+2\d\.\d", said), said
    assert re.search(r"1e-4 .* 50\.0 % +\+0\.0 +\+0\.0 to \+0\.0", said), said
    assert "1e-4: not above a question-only answerer" in said
    assert "1e-3: not above" not in said
    first, _ = sweep.results()["choices"]
    assert first["blind"] == 0.5
    assert first["above_blind"]["value"] == pytest.approx(0.2)


def test_a_failing_run_stops_no_other_and_is_listed_with_its_last_error(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of("run.init_lr=1e-3,1e-4,1e-5")
    sweep.plans(fail={"init_lr=1e-3": "the data are gone"})
    assert sweep.run() == 1
    assert len(sweep.attempts) == 3
    said = capsys.readouterr().out
    assert "2 of 3 runs finished, 1 failed" in said
    assert re.search(r"init_lr=1e-3 +failed: the data are gone", said)
    assert "failed: the data are gone" in (sweep.path / "sweep.md").read_text()
    sweep.plans(fail={})
    assert sweep.run() == 0
    assert sweep.attempts[3:] == ["init_lr=1e-3"], "a failed run is tried again, alone"


def test_more_values_extend_a_sweep_and_another_grid_needs_a_name_of_its_own(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES)
    sweep.grid = ["run.init_lr=1e-4"]
    assert sweep.run() == 0
    sweep.grid = [RATES]
    assert sweep.run() == 0
    assert sweep.attempts == ["init_lr=1e-4", "init_lr=1e-3"]
    sweep.grid = ["run.seed=1,2"]
    assert sweep.run() == 2
    assert "Give this one its own --name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "../elsewhere", "/elsewhere"])
def test_a_sweep_stays_in_the_output_folder(
    sweep_of: SweepOf, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_of(RATES).run("--name", name) == 2
    assert f"--name is '{name}'; it must be the name of a folder" in capsys.readouterr().err


def test_a_finished_run_of_another_config_is_not_taken_for_this_one(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES)
    assert sweep.run() == 0
    config = sweep.path / "runs" / "init_lr=1e-4" / "config.yaml"
    config.write_text(config.read_text().replace("max_epoch: 2", "max_epoch: 7"))
    assert sweep.run() == 2
    said = capsys.readouterr().err
    assert "run.max_epoch: 7 when saved, now 2" in said
    assert "num_workers" not in said


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["run.sed=1,2"], r"run\.sed: there is no such key\. Did you mean 'seed'"),
        (["run.seed=1,-1"], r"run\.seed is -1; it must be at least 0"),
        (["model.fusion.name=sum,sun"], "Did you mean 'sum'"),
        (["run.small_train_size+run.seed2=0.5:2"], "no such key"),
        (["run.small_train_size+run.patience=0.5:2,2.5:1"], "a share of the images is at most"),
        (["run.init_lr=1e-3,0.001"], "are the same"),
        (["run.max_epoch=1,2"], "run.max_epoch is in --options and varied too"),
        (["run.seed="], "run.seed has no values"),
    ],
)
def test_a_wrong_grid_is_refused_before_the_first_run(
    sweep_of: SweepOf, grid: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of("run.seed=1")
    sweep.grid = grid
    assert sweep.run() == 2
    assert re.search(said, capsys.readouterr().err)
    assert sweep.attempts == []
    assert not sweep.path.exists()


def test_a_metric_that_the_runs_lack_names_those_that_they_have(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES)
    assert sweep.run() == 0
    assert sweep.run("--report-only", "--metric", "acuracy") == 2
    assert "answer_accuracy" in capsys.readouterr().err
    assert sweep.run("--report-only", "--split", "vall") == 2
    assert "Did you mean 'val'" in capsys.readouterr().err


def test_a_run_that_diverged_stops_no_other_and_is_left_out_of_the_mean(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of("run.init_lr=1e-3", "run.seed=1,2,3")
    sweep.plans(values={"init_lr=1e-3,seed=1": 0.6, "init_lr=1e-3,seed=2": float("nan")})
    assert sweep.run() == 0
    said = capsys.readouterr().out
    assert "3 of 3 runs finished" in said
    assert re.search(r"1e-3 +2 +55\.0 % +7\.1", said), said
    assert "1 finished without a finite answer_accuracy on val" in said


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.json", '{"val": {"answer', "metrics.json is damaged"),
        ("metrics.json", '{"val": 1}', "metrics.json is damaged"),
        ("metrics.json", "{}", "has no final metrics to compare"),
        ("config.yaml", "run: [1]", "config.yaml isn't the config of a finished run"),
    ],
)
def test_a_finished_run_whose_files_are_damaged_is_named(
    sweep_of: SweepOf, file: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of("run.seed=1,2")
    assert sweep.run() == 0
    (sweep.path / "runs" / "seed=1" / file).write_text(text)
    assert sweep.run("--report-only") == 2
    err = capsys.readouterr().err
    assert said in err
    assert str(sweep.path / "runs" / "seed=1") in err
    assert "emove that folder to repeat the run" in err


def test_two_sweeps_in_one_folder_are_refused(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES)
    sweep.path.mkdir()
    with Lock(sweep.path / "sweep.lock") as lock:
        assert lock.taken()
        assert sweep.run() == 2
    assert "another sweep runs in this folder" in capsys.readouterr().err
    assert sweep.attempts == []


def test_an_array_trains_one_run_a_task_and_a_report_collects_them(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES, "run.seed=1,2")
    assert sweep.run("--print-array") == 0
    assert capsys.readouterr().out.strip() == "0-3"
    for index in (3, 0):
        assert sweep.run("--index", str(index)) == 0
    assert sweep.attempts == ["init_lr=1e-4,seed=2", "init_lr=1e-3,seed=1"]
    assert sweep.run("--index", "4") == 2
    assert "the grid has the runs 0 to 3" in capsys.readouterr().err
    assert sweep.run("--report-only") == 0
    assert "2 of 4 runs finished, 2 not started" in capsys.readouterr().out
    assert len(sweep.attempts) == 2


def test_a_report_of_no_sweep_says_so(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_of(RATES).run("--report-only") == 2
    assert "has no sweep" in capsys.readouterr().err


# --- killed and stopped --------------------------------------------------------------------------


@contextmanager
def holding(sweep: Sweep, name: str, *more: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A sweep of its own process, while its run ``name`` has saved a state and goes on.

    Yields the process, and a descriptor that ends when the run's process is gone.
    """
    pipe = sweep.output / "pipe"
    os.mkfifo(pipe)
    sweep.plans(hold={name: str(pipe)})
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(FAKE), *sweep.arguments, *more],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reader = os.open(pipe, os.O_RDONLY)  # waits until the run opens it
    try:
        assert os.read(reader, 100) == b"saved\n"
        yield process, reader
    finally:
        process.kill()
        process.communicate()
        os.close(reader)


def test_a_killed_sweep_leaves_no_run_behind_and_resumes_by_the_same_command(
    sweep_of: SweepOf, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(RATES, "run.seed=1,2")
    with holding(sweep, "init_lr=1e-3,seed=2") as (process, run):
        process.send_signal(signal.SIGKILL)
        process.wait()
        if sys.platform == "linux":
            assert os.read(run, 100) == b"", "the run's process has ended"
    assert sweep.run() == 0
    said = capsys.readouterr().out
    assert "4 runs (1 finished, 1 interrupted, 2 not started)" in said
    assert "init_lr=1e-3,seed=2: continues" in said
    assert "4 of 4 runs finished" in said
    assert sweep.attempts == [
        "init_lr=1e-3,seed=1",
        *["init_lr=1e-3,seed=2"] * 2,
        "init_lr=1e-4,seed=1",
        "init_lr=1e-4,seed=2",
    ]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_runs_cleanly_and_then_the_sweep(
    sweep_of: SweepOf, signum: signal.Signals
) -> None:
    sweep = sweep_of(RATES, "run.seed=1,2")
    with holding(sweep, "init_lr=1e-3,seed=1", "--at-once", "1") as (process, _):
        process.send_signal(signum)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert "init_lr=1e-3,seed=1: interrupted" in said
    assert "give the same command to go on" in said
    assert said.count(": starts") == 1, "no other run starts"
    assert json.loads((sweep.path / "output/init_lr=1e-3,seed=1.json").read_text())["code"] == 143
    assert sweep.run() == 0


def test_runs_at_the_same_time(sweep_of: SweepOf) -> None:
    """The second run ends the first one's waiting, which a sweep one by one would never come to."""
    sweep = sweep_of(RATES)
    with holding(sweep, "init_lr=1e-3", "--at-once", "2") as (process, _):
        other = sweep.path / "runs" / "init_lr=1e-4" / "metrics.json"
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("init_lr=1e-4: finished"):
                break
        assert other.is_file()
        assert sweep.run("--report-only") == 0
        statuses = [each["runs"][0]["status"] for each in sweep.results()["choices"]]
        assert statuses == ["running", "finished"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
