"""Searches: their notation, and trials that Optuna chooses and a second start continues."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.sweep import search
from lavis_ext.sweep.search import Search, bounds, parse_search
from tests.sweep.conftest import FAKE, Sweep
from tests.sweep.test_sweep import PROJECT, SWEEP

RANGES = ("run.init_lr=1e-5..1e-3:log", "run.batch_size_train=8..64")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("run.init_lr", "isn't of the form"),
        ("run.init_lr=", "has no values"),
        ("run.init_lr=1e-3", "needs a range"),
        ("run.init_lr=a..b", "no range of numbers"),
        ("run.init_lr=1e-3..1e-5", "is empty"),
        ("run.init_lr=0..1:log", "must begin above 0"),
        ("run.init_lr=1..2:lin", "no range of numbers"),
        ("run.init_lr=0..inf", "no range of numbers"),
        ("run.name=a,b", "is set by the sweep"),
    ],
)
def test_an_entry_of_another_form_is_refused(entry: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_search([entry])


def test_ranges_of_whole_numbers_of_numbers_and_of_choices() -> None:
    rate, size, name = parse_search([*RANGES, "model.fusion.name=sum,difnet,first_only"])
    assert (rate.low, rate.high, rate.is_log, rate.is_whole) == (1e-5, 1e-3, True, False)
    assert (size.low, size.high, size.is_log, size.is_whole) == (8, 64, False, True)
    assert name.texts == ("sum", "difnet", "first_only")
    checked = {
        (key, value) for run in bounds([rate, size, name]) for key, value in run.values.items()
    }
    assert ("run.batch_size_train", "8") in checked
    assert ("run.batch_size_train", "64") in checked
    assert {value for key, value in checked if key == "model.fusion.name"} == {*name.texts}


def test_without_optuna_the_error_names_the_extra(
    sweep_of: Callable[..., Sweep],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    sweep = searching(sweep_of)
    assert sweep.run() == 2
    assert re.search(r"pip install '\.\[sweep\]'", capsys.readouterr().err)
    assert sweep.attempts == []


def searching(sweep_of: Callable[..., Sweep], *more: str) -> Sweep:
    """A search by the stand-in, whose config is that of the config file for all trials."""
    sweep = sweep_of("run.seed=1")
    sweep.verb, sweep.grid = "--search", [*RANGES, "--trials", "4", *more]
    configs = Path(sweep.plan["configs"])
    text = (configs / "seed=1.yaml").read_text()
    for number in range(6):
        (configs / f"trial-{number:03d}.yaml").write_text(text)
    return sweep


def test_trials_are_ordered_by_the_metric(
    sweep_of: Callable[..., Sweep], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    sweep = searching(sweep_of)
    sweep.plans(values={"trial-001": 0.7, "trial-002": 0.6}, fail={"trial-003": "out of memory"})
    assert sweep.run() == 1
    names = [choice["runs"][0]["name"] for choice in sweep.results()["choices"]]
    assert names == ["trial-001", "trial-002", "trial-000", "trial-003"]
    assert re.search(r"trial-001 .* 70\.0 %", capsys.readouterr().out)
    values = [choice["values"] for choice in sweep.results()["choices"]]
    assert len({each["run.init_lr"] for each in values}) == 4
    assert all(1e-5 <= float(each["run.init_lr"]) <= 1e-3 for each in values)
    assert all(8 <= int(each["run.batch_size_train"]) <= 64 for each in values)


def test_a_failed_trial_is_tried_again_and_the_search_learns_its_value(
    sweep_of: Callable[..., Sweep],
) -> None:
    pytest.importorskip("optuna")
    sweep = searching(sweep_of)
    sweep.plans(fail={"trial-001": "the data are gone"})
    assert sweep.run() == 1
    assert sweep.run() == 1
    assert sweep.attempts[4:] == ["trial-001"], "alone, and to fail again"
    sweep.plans(values={"trial-001": 0.9}, fail={})
    sweep.grid = [*RANGES, "--trials", "5"]
    assert sweep.run() == 0
    again, new = sweep.attempts[5:]
    assert again == "trial-001"
    assert new not in sweep.attempts[:5]
    best, *others = sweep.results()["choices"]
    assert best["runs"][0]["name"] == "trial-001"
    assert len(others) == 4
    study = Search(sweep.path, parse_search(RANGES), 5, 0, 1)._study
    assert study.best_value == -0.9
    assert study.best_params["run.init_lr"] == float(best["values"]["run.init_lr"])
    assert sweep.run() == 0
    assert len(sweep.attempts) == 7, "nothing is left to do"


def test_a_killed_search_gives_its_open_trial_out_again(sweep_of: Callable[..., Sweep]) -> None:
    pytest.importorskip("optuna")
    sweep = searching(sweep_of)
    pipe = sweep.output / "pipe"
    os.mkfifo(pipe)
    sweep.plans(hold={"trial-001": str(pipe)})
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(FAKE), *sweep.arguments], cwd=PROJECT
    )
    with pipe.open() as saved:
        assert saved.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert saved.read() == "", "the trial's process has ended"
    assert sweep.run() == 0
    assert sweep.attempts == ["trial-000", "trial-001", "trial-001", "trial-002", "trial-003"]


def test_the_extra_of_the_message_exists() -> None:
    extras = (PROJECT / "pyproject.toml").read_text()
    assert re.search(r'^sweep = \["optuna>=', extras, re.M)
    assert "'.[sweep]'" in Path(search.__file__).read_text()
