"""A disk that fills up during training loses nothing of the run.

The kernel rejects writes as on a full disk: in this process by a limit on file sizes, in others on
a file system of a few MB.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import Appended
from lavis_ext.config.loader import Config
from lavis_ext.runners import dry_run as costs
from lavis_ext.runners import retries
from lavis_ext.runners.dry_run import describe
from lavis_ext.runners.retries import Retries
from lavis_ext.runners.state import RunState, state_paths
from lavis_ext.runners.trainer import Stepper
from tests.launching import PATIENCE, signal_this_run
from tests.robustness.torture_jobs import differences, left_by
from tests.runners.test_resuming import SPLITS, Killed, cut_off, flipped, kill, train
from tests.runners.test_runner import BEST, TINY_MODEL

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
LARGEST = 100_000
"""Maximum file size while the disk is full: larger than a log, smaller than weights."""
Configured = Callable[..., Config]


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    """Nine steps in three epochs, a state every other step."""
    options = [*tiny_options, *TINY_MODEL, "run.max_epoch=3", "run.log_freq=1"]
    options += ["run.save_every_steps=2", "run.name=here", "run.resume=auto", "run.report=false"]
    return lambda *more: configured(*options, *more)


def limit_files(size: int = resource.RLIM_INFINITY) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    limit_files(size)
    try:
        yield
    finally:
        limit_files()


@pytest.fixture
def before_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``before_steps({5: do})`` calls ``do`` once, when a run begins step 5."""

    def at(actions: dict[int, Callable[[], Any]]) -> None:
        step = Stepper.step

        def watched(self: Stepper, group: Any, epoch: int, steps: int) -> torch.Tensor:
            if action := actions.pop(steps + 1, None):
                action()
            return step(self, group, epoch, steps)

        monkeypatch.setattr(Stepper, "step", watched)

    yield at
    limit_files()


@pytest.mark.parametrize("pause", [0.0, 60.0], ids=["tried again", "written at the end"])
def test_a_temporarily_full_disk_changes_no_result(
    config: Configured,
    before_steps: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pause: float,
) -> None:
    """The disk is full from step 3 to 8, during which a validation finds better weights."""
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", pause)
    kept = []

    def freed() -> None:
        limit_files()
        kept.extend(RunState.load(path).step for path in state_paths(tmp_path / "output/here"))

    before_steps({3: lambda: limit_files(LARGEST), 8: freed})
    capsys.readouterr()
    folder = train(config()).output_dir
    assert differences(undisturbed, left_by(folder)) == []
    assert kept == [2], "the previous state is intact"
    out = capsys.readouterr().out
    assert out.count("the state of step 4 in ") == 1
    assert out.count("state_00000002.safetensors is kept") == 1
    assert out.count(f"{BEST} can't be written (File too large). The best weights are kept") == 1
    saved = 8 if pause == 0 else 9
    assert f"the state of step {saved} is saved; the disk is writable again" in out
    steps = [RunState.load(path).step for path in state_paths(folder)]
    assert steps == ([9, 8] if pause == 0 else [9, 2])
    assert not list(folder.glob(".*")), "temporary files are left"


@pytest.mark.parametrize("what", ["state", "predictions"])
def test_a_run_that_ends_on_a_full_disk_explains_how_to_resume(
    config: Configured, before_steps: Any, tmp_path: Path, what: str
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    folder = tmp_path / "output" / "here"
    if what == "state":
        before_steps({5: lambda: limit_files(LARGEST)})
        expected = r"can't be written \(File too large\)\. state_00000004.* run\.resume=.*/here\.$"
    else:
        (folder / "val_predictions.json").mkdir(parents=True)  # can't be replaced
        expected = r"val_predictions\.json can't be written .* state_00000009.* run\.resume="
    with pytest.raises(UserError, match=expected):
        train(config())
    assert not (folder / "metrics.json").exists()
    limit_files()
    if what == "predictions":
        (folder / "val_predictions.json").rmdir()
    assert differences(undisturbed, left_by(train(config(f"run.resume={folder}")).output_dir)) == []


def test_a_signal_on_a_full_disk_ends_the_run_and_names_the_kept_state(
    config: Configured, before_steps: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    before_steps({5: lambda: limit_files(LARGEST), 6: lambda: signal_this_run(signal.SIGTERM)})
    started = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        train(config())
    assert caught.value.code == 143
    assert time.monotonic() - started < 120
    limit_files()
    out = capsys.readouterr().out
    assert "SIGTERM: the run stopped at step 6, but the state of step 6" in out
    assert "can't be written (File too large). state_00000004.safetensors is kept." in out
    assert differences(undisturbed, left_by(train(config()).output_dir)) == []


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_best_weights_match_the_resumed_state(
    config: Configured,
    before_steps: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    links: bool,
) -> None:
    """There are states of steps 4 and 6; the second, after a better validation, is damaged."""
    if not links:  # as some network file systems

        def refused(*_: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    value = {3: 0.3, 6: 0.6, 9: 0.1}
    evaluate = "lavis_ext.runners.trainer.Trainer.eval_epoch"
    monkeypatch.setattr(evaluate, lambda runner, *_, **__: {"answer_accuracy": value[runner.steps]})
    before_steps({8: kill})
    cut_off(config("run.test_splits=[]"), Killed)
    folder = tmp_path / "output" / "here"
    first, second = (load_file(path) for path in sorted(folder.glob(f"{BEST[:-12]}*")))
    assert not all(torch.equal(first[name], second[name]) for name in first)
    flipped(state_paths(folder)[0])
    value[6] = 0.2  # it isn't better any more
    best = train(config("run.test_splits=[]")).output_dir / BEST
    assert (TrainedWeights.load(best).step, TrainedWeights.load(best).value) == (3, 0.3)
    assert len(list(folder.glob(f"{BEST[:-12]}*"))) == 1, "no state needs the others"


def test_best_weights_that_differ_from_the_states_are_rejected(
    config: Configured, before_steps: Any, tmp_path: Path
) -> None:
    before_steps({6: kill})
    cut_off(config(), Killed)
    best = tmp_path / "output" / "here" / BEST
    weights = TrainedWeights.load(best)
    TrainedWeights(weights.state, weights.config, "loss", 1.0, 77, weights.facts).save(best)
    with pytest.raises(UserError, match=r"has the weights of step 77, but .* of step 3"):
        train(config())


def test_a_flipped_bit_in_weights_is_an_error_and_weights_without_a_checksum_load(
    tmp_path: Path,
) -> None:
    path = tmp_path / BEST
    TrainedWeights({"fusion.gate": torch.ones(64)}, {"model": {}}, None, None, step=3).save(path)
    whole = path.read_bytes()
    for place in (whole.index(b'"step') + 8, len(whole) - 9, whole.index(b"digest")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=f"{BEST} is damaged"):
            TrainedWeights.load(path)
    facts = {"config": {"model": {}}, "vocabulary": None, "metric": None, "value": None, "step": 4}
    save_file(
        {"fusion.gate": torch.ones(2)},
        path,
        {"format": "lavis_ext.fusion_weights.1", "lavis_ext": json.dumps(facts)},
    )
    assert TrainedWeights.load(path).step == 4


def test_records_are_kept_in_order_while_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    file = Appended(path)
    file.append(b"one\n")
    with full_disk(10):
        for record in (b"seventy\n", b"more\n"):
            with pytest.raises(OSError, match="File too large"):
                file.append(record)
            assert path.read_bytes() == b"one\n"
        with pytest.raises(OSError, match="File too large"):
            file.sync()
    file.append(b"last\n")
    assert path.read_bytes() == b"one\nseventy\nmore\nlast\n"
    assert file.sync() == 22
    file.close()


def test_a_log_closed_twice_closes_no_other_file(tmp_path: Path) -> None:
    log, others = Appended(tmp_path / "log.jsonl"), []
    log.close()
    for name in "abcdefgh":  # one of them gets the log's descriptor
        others.append(Appended(tmp_path / name))
    log.close()
    for file in others:
        file.append(b"line\n")
        file.close()


def test_training_continues_without_a_writable_log(
    config: Configured, before_steps: Any, tmp_path: Path
) -> None:
    """The terminal isn't writable either, because pytest captures it in a file."""
    pytest.importorskip("tensorboard")
    options = ["run.val_every_steps=9"]
    undisturbed = train(config(*options, f"run.output_dir={tmp_path / 'a'}")).output_dir
    before_steps({2: lambda: limit_files(0), 5: limit_files})
    folder = train(config(*options, "run.tensorboard=true")).output_dir
    assert differences(left_by(undisturbed), left_by(folder)) == []
    text = (folder / "log.txt").read_text()
    assert all(f"step {step}/9" in text for step in range(1, 10))
    assert "log.jsonl can't be written (File too large). Its lines are kept in memory" in text
    assert "log.jsonl is writable again; pending lines are written" in text
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, 10)]


def test_pauses_double_up_to_a_minute() -> None:
    now = [0.0]
    tries = Retries(clock=lambda: now[0])
    assert not tries.due
    pauses = []
    for _ in range(9):
        tries.failed("no room", "It waits.")
        start = now[0]
        while not tries.due:
            now[0] += 0.5
        pauses.append(now[0] - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    tries.worked("room")
    assert not tries.due
    assert tries.failure is None


def test_too_small_a_disk_is_an_error_before_training(
    config: Configured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    free = SimpleNamespace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(
        UserError,
        match=r"/here: the run's files need 14\.\d MiB more \(2 states of 3\.\d+ MiB and the next "
        r"one, their best weights of 1\.\d+ MiB each and 1 of run\.save_freq\), and 4\.77 MiB are "
        r"free\. Free some disk space, set run\.save_freq higher, or .* run\.output_dir",
    ):
        train(config("run.save_freq=2"))
    assert not (tmp_path / "output").exists()
    monkeypatch.setattr(costs, "STEPS", 1)
    describe(config(), SPLITS)
    assert re.search(r"disk +at most 1[34]\.", capsys.readouterr().out)
    free.free = 14_300_000
    folder = train(config("run.max_steps=5")).output_dir
    there = [*state_paths(folder), folder / BEST]
    free.free -= sum(path.stat().st_size for path in there)
    train(config("run.max_steps=6"))  # existing files count


TRAINS_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=16m none {disk} || exit 77
{train} > {disk}/said 2>&1 &
while kill -0 $! && ! ls {disk}/output/here/state_*4.safetensors > {disk}/found 2>&1; do
    sleep 0.02
done
cat /dev/zero > {disk}/ballast
wait $!
echo $?
cp {disk}/said {kept}
rm {disk}/ballast
{train} > {disk}/said 2>&1
echo $?
cp {disk}/said {kept}.2
"""


def test_a_command_on_a_full_disk_ends_with_its_code_and_resumes(
    config: Configured, tiny_options: list[str], tmp_path: Path
) -> None:
    """Its output also goes to a file there, for which Python alone would exit with 120."""
    disk, kept = tmp_path / "disk", tmp_path / "said"
    disk.mkdir()
    options = [*tiny_options, *TINY_MODEL, "run.name=here", "run.resume=auto"]
    options += [f"run.output_dir={disk / 'output'}", "run.max_epoch=40", "run.max_steps=30"]
    options += ["run.save_every_steps=4", "run.patience=null", "run.report=false"]
    small = "projects/pnp-vqa/train/gqa_small.yaml"
    command = [sys.executable, "train.py", "--cfg-path", small, "--options", *options]
    script = TRAINS_ON_A_SMALL_DISK.format(disk=disk, kept=kept, train=" ".join(command))
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a namespace of its own to mount a small disk in")
    assert done.stdout.split() == ["2", "0"], done.stderr + kept.read_text()
    assert "Traceback" not in kept.read_text()
    assert "No space left on device" in kept.read_text()
    assert "resuming after step" in Path(f"{kept}.2").read_text()
