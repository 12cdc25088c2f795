"""An interrupted run resumes as if undisturbed, or explains why it can't."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lavis_ext.common.errors import UserError, command
from lavis_ext.common.locks import Lock
from lavis_ext.config.loader import Config
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import TrainBatches
from lavis_ext.runners import stop_signals
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.launch import started
from lavis_ext.runners.resuming import GLOBAL_BATCH, check_fits
from lavis_ext.runners.run_folder import LOCK
from lavis_ext.runners.state import RunState, random_states, set_random_states, state_paths
from lavis_ext.runners.stop_signals import StopSignals
from lavis_ext.runners.trainer import Stepper, Trainer
from tests.distributed.test_processes import train as launch
from tests.launching import PATIENCE, Killed, signal_this_run, torchrun_command, wait_until
from tests.robustness.torture_jobs import differences, left_by
from tests.runners.test_runner import BEST, TINY_MODEL, lines

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
SPLITS = ["train", "val", "testdev"]
Configured = Callable[..., Config]


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    """Nine steps in three epochs, with dropout; a log line covers two steps."""
    options = [
        *tiny_options,
        *TINY_MODEL,
        "model.fusion.dropout=0.2",
        "model.objectives.head.dropout=0.2",
        "run.max_epoch=3",
        "run.log_freq=2",
        "run.save_every_steps=2",
        "run.name=here",
        "run.resume=auto",
    ]
    return lambda *more: configured(*options, *more)


def kill() -> None:
    raise Killed


def train(cfg: Config) -> Trainer:
    with started(cfg, SPLITS) as runner:
        runner.train()
    return runner


def cut_off(cfg: Config, error: type[BaseException] = Killed) -> None:
    with pytest.raises(error), started(cfg, SPLITS) as runner:
        runner.train()


@pytest.mark.parametrize("options", [[], ["run.batch_size_train=8", "run.accum_grad_iters=2"]])
def test_a_killed_and_resumed_run_equals_an_undisturbed_one(
    config: Configured, before_step: Any, tmp_path: Path, options: list[str]
) -> None:
    options = [*options, "run.save_every_steps=1"]
    undisturbed = left_by(train(config(*options, f"run.output_dir={tmp_path / 'a'}")).output_dir)
    for step in (1, 6, 8):  # before the first state; in the middle of an epoch and a log's line
        before_step(step, kill)
        cut_off(config(*options))
    runner = train(config(*options))
    assert differences(undisturbed, left_by(runner.output_dir)) == []
    assert [line["step"] for line in lines(runner.output_dir)] == [2, 4, 6, 8, 9]
    assert [path.name for path in state_paths(runner.output_dir)] == [
        "state_00000009.safetensors",
        "state_00000008.safetensors",
    ]


def test_no_question_is_repeated_or_left_out_and_no_past_image_read(
    config: Configured, before_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    images: list[str] = []
    read, step = ImageFolder.read, Stepper.step

    def counted(self: ImageFolder, image: str) -> Any:
        images.append(image)
        return read(self, image)

    def noted(self: Stepper, group: Any, *place: int) -> torch.Tensor:
        asked.extend(question for samples in group for question in samples["ids"])
        return step(self, group, *place)

    monkeypatch.setattr(ImageFolder, "read", counted)
    monkeypatch.setattr(Stepper, "step", noted)
    options = ["run.save_every_steps=1", "run.valid_splits=[]", "run.patience=null"]
    options += ["run.test_splits=[]", "run.max_epoch=1"]
    before_step(3, kill)
    cut_off(config(*options))
    before = len(asked)
    assert before == len(set(asked)) < 48
    images.clear()
    train(config(*options))
    assert len(asked) == len(set(asked)) == 48
    assert len(images) <= 48 - before


def test_patience_best_metric_and_best_weights_survive(
    config: Configured, before_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the best metric, 0.3 would be the best; without the count, steps 5 and 6 follow."""
    scripted = {1: 0.5, 2: 0.2, 3: 0.3, 4: 0.1, 5: 0.1, 6: 0.1}
    states = {}

    def scripted_epoch(runner: Trainer, split: str, **_: Any) -> dict[str, float]:
        states[runner.steps] = {n: t.clone() for n, t in runner.model.exported_state().items()}
        return {"answer_accuracy": scripted[runner.steps]}

    monkeypatch.setattr(Trainer, "eval_epoch", scripted_epoch)
    options = ["run.val_every_steps=1", "run.patience=3", "run.save_every_steps=1"]
    options += ["run.test_splits=[]"]
    before_step(3, kill)
    cut_off(config(*options))
    best_state = states[1]
    runner = train(config(*options))
    assert runner.steps == 4
    assert (runner.early_stopping.best, runner.early_stopping.waited) == (0.5, 3)
    exported = load_file(runner.output_dir / BEST)
    assert all(torch.equal(exported[name], best_state[name]) for name in exported)
    assert "best weights, of step 1" in (runner.output_dir / "log.txt").read_text()


def test_a_run_without_its_best_weights_does_not_resume(
    config: Configured, before_step: Any, tmp_path: Path
) -> None:
    before_step(6, kill)
    cut_off(config())
    (tmp_path / "output" / "here" / BEST).unlink()
    with pytest.raises(UserError, match="the run's best weights, is missing"):
        train(config())


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'\\"step\\": 4', b'\\"step\\": 3')
        ),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 99),
    ],
    ids=["bit", "end", "fact", "empty", "other"],
)
def test_a_damaged_state_is_skipped_for_the_previous_one(
    config: Configured,
    before_step: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    before_step(6, kill)
    cut_off(config())
    folder = tmp_path / "output" / "here"
    assert [path.name[-13:-12] for path in state_paths(folder)] == ["4", "2"]
    damage(state_paths(folder)[0])
    runner = train(config("run.max_steps=5"))
    out = capsys.readouterr().out
    assert "state_00000004.safetensors" in out
    assert "Falling back to the previous state." in out
    assert "resuming after step 2" in out
    assert [line["step"] for line in lines(runner.output_dir)] == [2, 4, 5]
    assert all(RunState.load(path) for path in state_paths(folder))


def test_a_path_names_a_run_or_one_of_its_states(
    config: Configured, before_step: Any, tmp_path: Path
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    before_step(8, kill)
    cut_off(config("run.log_freq=2"))
    folder = tmp_path / "output" / "here"
    earlier = state_paths(folder)[1]
    before_step(6, kill)
    cut_off(config(f"run.resume={earlier}", "run.name=null"))
    assert state_paths(folder) == [earlier], "that of step 6 has no place in this run's log"
    assert differences(undisturbed, left_by(train(config(f"run.resume={folder}")).output_dir)) == []
    with pytest.raises(UserError, match=r"run\.resume is '.*nowhere', which doesn't exist"):
        train(config(f"run.resume={tmp_path / 'nowhere'}"))
    with pytest.raises(UserError, match="there is no intact state"):
        train(config(f"run.resume={tmp_path}"))
    assert not (tmp_path / "log.jsonl").exists()
    for path in state_paths(folder):
        flipped(path)
    with pytest.raises(UserError, match=r"there is no intact state .*remove the folder"):
        train(config())


def test_without_a_name_the_newest_unfinished_run_resumes(
    config: Configured, before_step: Any, tmp_path: Path
) -> None:
    ended = train(config("run.name=null", "run.max_steps=2")).output_dir
    before_step(4, kill)
    cut_off(config("run.name=null"))
    (unfinished,) = set((tmp_path / "output").iterdir()) - {ended}
    assert unfinished.name.startswith("gqa_small-")
    with Lock(unfinished / LOCK) as other:
        assert other.taken()
        # flock is of an open file, so it holds within a process too: a run that is alive.
        assert train(config("run.name=null", "run.max_steps=2")).output_dir != unfinished
    assert train(config("run.name=null")).output_dir == unfinished
    assert train(config("run.name=null", "run.max_steps=2")).output_dir != unfinished


def test_an_interrupt_before_training_ends_with_its_code_and_no_traceback() -> None:
    @command
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130


def test_a_taken_name_and_restarts_without_resume_are_rejected(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config("run.max_steps=1"))
    with pytest.raises(UserError, match=r"run\.name: .*here already exists"):
        train(config("run.resume=null"))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match=r"--max-restarts .* set run\.resume=auto"):
        train(config("run.resume=null", "run.name=other"))


@pytest.mark.parametrize("name", ["", "..", "a/b", " "])
def test_a_name_must_be_a_folders_name(config: Configured, name: str) -> None:
    with pytest.raises(UserError, match=r"run\.name is '.*'; it must be the name of a folder"):
        config(f"run.name='{name}'")


def test_disallowed_changes_are_listed_and_allowed_ones_logged(
    config: Configured, before_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before_step(6, kill)
    cut_off(config())
    with pytest.raises(UserError) as caught:
        train(
            config(
                "run.seed=7",
                "run.trainable=[fusion.*]",
                "model.fusion.dropout=0.1",
                "model.objectives.head.weight=2",
                "datasets.gqa_fusion.mismatched.hard=true",
                "run.accum_grad_iters=2",
                "run.patience=9",
            )
        )
    message = str(caught.value)
    for text in (
        "run.seed: 42 when saved, now 7",
        "run.trainable: ['*'] when saved, now ['fusion.*']",
        "model.fusion.dropout: 0.2 when saved, now 0.1",
        "model.objectives.head.weight: ",
        "datasets.gqa_fusion.mismatched.hard: False when saved, now True",
        "run.accum_grad_iters: 1 when saved, now 2",
        "run.resume=null",
    ):
        assert text in message
    assert "patience" not in message
    with pytest.raises(UserError, match="examples a batch of all processes: 16 when saved, now 8"):
        train(config("run.batch_size_train=8"))
    capsys.readouterr()
    train(config("run.patience=9", "run.log_freq=1"))
    out = capsys.readouterr().out
    assert "changed since the state was saved: run.patience: 3 when saved, now 9" in out
    assert "changed since the state was saved: run.log_freq: 2 when saved, now 1" in out


def test_options_newer_than_a_state_have_their_defaults(config: Configured, tmp_path: Path) -> None:
    cfg = config("run.max_steps=2")
    folder = train(cfg).output_dir
    state = RunState.load(state_paths(folder)[0])
    now = copy.deepcopy(state.config)
    del state.config["model"]["reader"]["clean_answers"]
    check_fits(state, cfg, now, state.batches)
    now["model"]["reader"]["clean_answers"] = False
    with pytest.raises(UserError, match=r"clean_answers: True when saved, now False"):
        check_fits(state, cfg, now, state.batches)


def test_other_data_under_the_same_config_are_rejected(config: Configured, tmp_path: Path) -> None:
    cfg = config("run.max_steps=2")
    folder = train(cfg).output_dir
    state = RunState.load(state_paths(folder)[0])
    check_fits(state, cfg, state.config, state.batches)
    with pytest.raises(UserError, match="the data set's examples or images differ"):
        check_fits(state, cfg, state.config, state.batches | {"layout": "other"})


@pytest.mark.parametrize(
    ("now", "changed", "advice"),
    [
        ((2, 8), {}, "its product with the number of processes stays the same."),
        ((1, 32), {}, "use 2 processes with run.batch_size_train=16 again."),
        ((2, 16), {}, "Use the same data as before."),
        (
            (2, 16),
            {"images_per_batch": 3},
            "run.images_per_batch: null when saved, now 3: change it back.",
        ),
    ],
)
def test_the_advice_of_a_refused_resume_is_not_followed_already(
    now: tuple[int, int], changed: dict[str, Any], advice: str, config: Configured
) -> None:
    cfg = config("run.max_steps=1")
    state = RunState.load(state_paths(train(cfg).output_dir)[0])

    def batches(processes: int, size: int, layout: str) -> dict[str, Any]:
        made = {"processes": processes, GLOBAL_BATCH: processes * size, "layout": layout}
        return state.batches | made

    saved = replace(state, batches=batches(2, 16, "saved"))
    given = {**state.config, "run": {**state.config["run"], **changed}}
    with pytest.raises(UserError) as error:
        check_fits(saved, cfg, given, batches(*now, "now"))
    assert str(error.value).endswith(advice)


def test_a_global_batch_of_one_size_may_be_others_in_other_processes() -> None:
    """Images aren't shared out evenly, so the product of size and processes isn't enough."""
    images = np.repeat(np.arange(20), 7)
    layouts = {
        TrainBatches(
            images, batch_size=32 // world, examples_per_image=20, seed=0, world_size=world
        ).layout
        for world in (1, 2, 16)
    }
    assert len(layouts) > 1


def test_another_number_of_processes_has_the_same_batches_if_they_are_as_large() -> None:
    images = np.repeat(np.arange(20), 3)

    def layout(size: int, world: int) -> str:
        batches = TrainBatches(
            images, batch_size=size, examples_per_image=2, seed=0, world_size=world
        )
        return batches.layout

    assert layout(16, 1) == layout(8, 2)
    assert layout(16, 1) != layout(16, 2)
    halves = [
        TrainBatches(images, batch_size=8, examples_per_image=2, seed=0, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    whole = TrainBatches(images, batch_size=16, examples_per_image=2, seed=0)
    whole.start = halves[0].start = halves[1].start = 2
    batches = [list(each) for each in (whole, *halves)]
    assert len(batches[0]) == len(whole) - 2
    for all_rows, *parts in zip(*batches, strict=True):
        assert sorted(all_rows.rows) == sorted(np.concatenate([part.rows for part in parts]))


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["TERM", "INT", "HUP"],
)
def test_a_signal_ends_the_run_after_the_step_with_its_state_saved(
    config: Configured, before_step: Any, tmp_path: Path, signum: int, code: int
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    before_step(5, lambda: signal_this_run(signum))
    handlers = signal.getsignal(signum)
    with pytest.raises(SystemExit) as caught, started(config(), SPLITS) as runner:
        runner.train()
    assert caught.value.code == code
    said = (runner.output_dir / "log.txt").read_text(encoding="utf-8")
    assert (
        f"To continue it, give the same command with --options run.resume={runner.output_dir}"
        in said
    )
    assert RunState.load(state_paths(runner.output_dir)[0]).step == 5
    assert signal.getsignal(signum) is handlers
    assert differences(undisturbed, left_by(train(config()).output_dir)) == []


def test_an_interrupted_validation_is_repeated(
    config: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    with started(config("run.save_every_steps=null"), SPLITS) as runner:
        valid_step = runner.task.valid_step

        def terminated(*arguments: Any) -> Any:
            signal_this_run(signal.SIGTERM)
            return valid_step(*arguments)

        monkeypatch.setattr(runner.task, "valid_step", terminated)
        with pytest.raises(SystemExit):
            runner.train()
    state = RunState.load(state_paths(runner.output_dir)[0])
    assert (state.step, state.validated_at, state.best) == (3, -1, None)
    assert lines(runner.output_dir, "val") == []
    assert differences(undisturbed, left_by(train(config()).output_dir)) == []


def in_child(do: Callable[[], Any]) -> int:
    """Fork a child that calls a function and exits with 0; returns its process id."""
    if pid := os.fork():
        return pid
    try:
        do()
    finally:
        os._exit(0)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("elastic", "codes"), [(False, 143), (True, 0)])
def test_a_second_signal_ends_a_hanging_process_but_a_forwarded_one_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, elastic: bool, codes: int
) -> None:
    """torchrun forwards signals that the whole job may have received already."""
    if elastic:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setattr(stop_signals, "TORCHRUN_ECHO_SECONDS", 300.0)
    reads, writes = os.pipe()
    end = tmp_path / "end"

    def hang() -> None:
        with StopSignals() as signals:
            os.write(writes, b".")
            wait_until(lambda: signals.received)
            os.write(writes, b".")
            wait_until(end.exists)

    pid = in_child(hang)
    for _ in range(2):
        os.read(reads, 1)
        time.sleep(2 * stop_signals.ECHO_SECONDS)
        os.kill(pid, signal.SIGTERM)
    if elastic:
        time.sleep(0.5)
        end.touch()
    assert exit_code(pid) == codes


def test_a_run_under_nohup_survives_its_terminal() -> None:
    def hang_up() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            while not signals.received:
                time.sleep(0.01)
            os._exit(signals.received)

    assert exit_code(in_child(hang_up)) == signal.SIGTERM


def test_loader_workers_survive_signals_to_the_group_and_end_with_an_error(tmp_path: Path) -> None:
    """Python ends workers with SIGTERM and waits for them; it would hang if they ignored it."""
    program = tmp_path / "loads.py"
    program.write_text(LOADS)
    with subprocess.Popen(
        [sys.executable, program],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "0\n"
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.killpg(run.pid, signum)
        _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1
    assert "RuntimeError: as late as batch 3" in err


LOADS = """
import signal, time
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.loader import Loader

class Slow:
    def __getitems__(self, rows):
        time.sleep(0.5)
        return rows

    def collater(self, batch):
        return batch

for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, lambda *_: None)
loader = Loader(Slow(), [[row] for row in range(9)], 1, DataFaultsConfig(), persistent=True)
for (row,) in loader:
    print(row, flush=True)
    if row == 3:
        raise RuntimeError("as late as batch 3")
"""


def test_a_dead_processs_lock_is_free_though_its_children_live(tmp_path: Path) -> None:
    reads, writes = os.pipe()

    def hold() -> None:
        lock = Lock(tmp_path / "lock")
        assert lock.taken()
        in_child(lambda: time.sleep(5))
        os.write(writes, b".")
        time.sleep(60)

    pid = in_child(hold)
    os.read(reads, 1)
    with Lock(tmp_path / "lock") as lock:
        assert not lock.taken()
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        assert lock.taken()


def spoilt(
    monkeypatch: pytest.MonkeyPatch, steps: set[int], how: str
) -> tuple[dict[int, list[torch.Tensor]], dict[int, list[str]]]:
    """Make the loss, or one gradient, non-finite in ``steps``.

    Returns weights and moments after each step, and its questions.
    """
    step = Stepper.step
    weights: dict[int, list[torch.Tensor]] = {}
    asked: dict[int, list[str]] = {}

    def spoiling(self: Stepper, group: Any, epoch: int, steps_before: int) -> torch.Tensor:
        bad = steps_before + 1 in steps
        task, parameter = self._task, next(iter(self._parameters.values()))
        hook = None
        if bad and how == "loss":
            whole = task.train_step

            def infinite(model: Any, samples: Any) -> Any:
                output = whole(model, samples)
                # Its gradient would be finite.
                losses = {n: each + float("inf") for n, each in output.losses.items()}
                return output._replace(losses=losses)

            monkeypatch.setattr(task, "train_step", infinite)
        elif bad:
            hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
        asked[steps_before + 1] = [question for s in group for question in s["ids"]]
        found = step(self, group, epoch, steps_before)
        if bad and how == "loss":
            monkeypatch.setattr(task, "train_step", whole)
        if hook:
            hook.remove()
        model, optimizer = self.tensors()
        weights[steps_before + 1] = [t.clone() for t in model.values()] + [
            value.clone() for values in optimizer.values() for value in values.values()
        ]
        return found

    monkeypatch.setattr(Stepper, "step", spoiling)
    return weights, asked


@pytest.mark.parametrize("clipped", ["1.0", "null"])
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing_and_is_counted(
    config: Configured, monkeypatch: pytest.MonkeyPatch, how: str, clipped: str
) -> None:
    weights, asked = spoilt(monkeypatch, {4, 5, 7}, how)
    runner = train(
        config("run.log_freq=1", "run.max_skipped_steps=3", f"run.max_grad_norm={clipped}")
    )
    assert all(torch.isfinite(each).all() for each in weights[9])
    for step in range(2, 10):
        same = all(map(torch.equal, weights[step - 1], weights[step]))
        assert same == (step in (4, 5, 7)), step
    assert [line["skipped_steps"] for line in lines(runner.output_dir)] == [
        0,
        0,
        0,
        1,
        2,
        2,
        3,
        3,
        3,
    ]
    skipped = lines(runner.output_dir, "skipped")
    assert {line["step"]: line["ids"] for line in skipped} == {
        step: asked[step] for step in (4, 5, 7)
    }
    if how == "loss":
        assert "loss" not in lines(runner.output_dir)[3]
    assert "NaN" not in (runner.output_dir / "log.jsonl").read_text()
    assert RunState.load(state_paths(runner.output_dir)[0]).skipped == 3


SPOIL = """
import torch
from lavis_ext import distributed
from lavis_ext.tasks.gqa import GqaFusionTask

train_step, calls = GqaFusionTask.train_step, []

def spoilt(self, model, samples):
    output = train_step(self, model, samples)
    calls.append(len(samples["ids"]))
    if distributed.rank() == 1 and len(calls) == 3:
        losses = {n: each + float("inf") for n, each in output.losses.items()}
        output = output._replace(losses=losses)
    return output

GqaFusionTask.train_step = spoilt
"""


def test_all_processes_skip_a_step_with_a_non_finite_gradient_in_one(
    tiny_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    options = ["imports=[spoil]", "run.name=here", "run.log_freq=1", "run.batch_size_train=8"]
    options += ["run.max_epoch=2", "run.save_every_steps=1"]
    done = launch(2, [*tiny_options, *TINY_MODEL, *options])
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "output" / "here"
    assert [line["skipped_steps"] for line in lines(folder)] == [0, 0, 1, 1, 1, 1]
    (skipped,) = lines(folder, "skipped")
    assert skipped["step"] == 3
    assert len(skipped["ids"]) > 8, "those of both processes"
    state = RunState.load(state_paths(folder)[0])
    assert all(torch.isfinite(tensor).all() for tensor in state.model.values())


def test_too_many_consecutive_skipped_steps_end_the_run_and_keep_the_state(
    config: Configured, monkeypatch: pytest.MonkeyPatch, before_step: Any
) -> None:
    spoilt(monkeypatch, {4, 5, 6, 7}, "loss")
    before_step(6, kill)
    cut_off(config("run.max_skipped_steps=3"))  # the state of step 4 has one in a row
    with (
        pytest.raises(UserError, match=r"step 6: .* in 3 consecutive steps .*max_skipped_steps"),
        started(config("run.max_skipped_steps=3"), SPLITS) as runner,
    ):
        runner.train()
    assert [line["step"] for line in lines(runner.output_dir, "skipped")] == [4, 5, 6]
    state = RunState.load(state_paths(runner.output_dir)[0])
    assert state.step == 4
    assert all(torch.isfinite(tensor).all() for tensor in state.model.values())


def test_running_statistics_are_part_of_the_state() -> None:
    """No module of this library has any, but a custom fusion may."""

    def made() -> tuple[nn.Module, Stepper]:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        model[2].requires_grad_(False)
        model.OLD_PARAMETERS = {}
        return model, Stepper(None, model, RunConfig(), 9, torch.device("cpu"))

    model, stepper = made()
    model(torch.randn(8, 2) + 3)
    tensors, optimizer = stepper.tensors()
    assert {"1.running_mean", "1.num_batches_tracked"} <= tensors.keys()
    assert "2.running_mean" not in tensors
    other, fresh = made()
    fresh.load(saved(tensors, optimizer))
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    with pytest.raises(
        UserError, match=r"the trained parameters of the state and the model differ: 1\.bias"
    ):
        fresh.load(saved({n: t for n, t in tensors.items() if n != "1.bias"}, optimizer))


def saved(tensors: Any, optimizer: Any) -> Any:
    """A state with the fields that a stepper reads."""
    return SimpleNamespace(
        renamed_model=lambda old: tensors, renamed_optimizer=lambda old: optimizer, ranks=[]
    )


def test_all_random_states_are_restored() -> None:
    import random

    def drawn() -> list[Any]:
        return [random.random(), np.random.rand(), torch.rand(3).tolist()]  # noqa: NPY002

    random.gauss(0, 1)
    tensors, values = random_states(torch.device("cpu"))
    values = json.loads(json.dumps(values))
    first = drawn()
    drawn()
    set_random_states(tensors, values, torch.device("cpu"))
    assert drawn() == first


def test_wandb_and_tensorboard_continue_the_same_run(
    config: Configured, before_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["run.tensorboard=true", "run.wandb.mode=offline"]
    before_step(6, kill)
    cut_off(config(*options))
    folder = train(config(*options)).output_dir
    runs = [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len(set(runs)) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8, 9]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a SLURM job of two tasks, with stand-ins for SLURM's programs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(
        "#!/usr/bin/env bash\n"
        'if [[ $1 == show ]]; then echo localhost; else echo "$*" >> requeued; fi\n'
    )
    (tools / "srun").write_text(
        "#!/usr/bin/env bash\n"
        "while [[ $1 == -* ]]; do shift; done\n"
        'for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & done\n'
        "code=0; for _ in 0 1; do wait -n || code=$?; done; exit $code\n"
    )
    (tools / "python").symlink_to(sys.executable)
    for tool in ("scontrol", "srun"):
        (tools / tool).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1]",
        "SLURM_NTASKS": "2",
    }


@pytest.mark.parametrize(
    ("program", "code", "requeued"),
    [
        ("import os, sys; os.environ['RANK'] == '1' or sys.exit(143)", 143, True),
        ("import sys; sys.exit(2)", 2, False),
        (
            "import os, sys\n"
            "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')\n"
            "values = [os.environ[name] for name in names]\n"
            "sys.stdout.write(' '.join([*values, *sys.argv[1:]]) + '\\n')",
            0,
            False,
        ),
    ],
)
def test_the_slurm_script_requeues_preempted_jobs(
    job: dict[str, str], tmp_path: Path, program: str, code: int, requeued: bool
) -> None:
    shutil.copytree(PROJECT / "run_scripts", tmp_path / "run_scripts")
    (tmp_path / "train.py").write_text(program)
    done = subprocess.run(
        ["bash", "run_scripts/slurm.sh", "some.yaml", "run.seed=3"],
        cwd=tmp_path,
        env=job,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    if code == 0:
        arguments = "--cfg-path some.yaml --options run.name=some-4711 run.resume=auto run.seed=3"
        assert sorted(done.stdout.splitlines()) == [
            f"{rank} {rank} 2 localhost 24711 {arguments}" for rank in (0, 1)
        ]


@pytest.mark.parametrize(("code", "requeued"), [(143, True), (2, False), (0, False)])
def test_the_slurm_script_of_a_sweep_requeues_preempted_tasks(
    job: dict[str, str], tmp_path: Path, code: int, requeued: bool
) -> None:
    shutil.copytree(PROJECT / "run_scripts", tmp_path / "run_scripts")
    package = tmp_path / "lavis_ext"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sweep.py").write_text(
        f"import sys; print(*sys.argv[1:], flush=True); sys.exit({code})"
    )
    done = subprocess.run(
        ["bash", "run_scripts/slurm_sweep.sh", "--cfg-path", "a.yaml", "--grid", "run.seed=1,2"],
        cwd=tmp_path,
        env={
            **job,
            "SLURM_NTASKS": "1",
            "SLURM_ARRAY_JOB_ID": "4711",
            "SLURM_ARRAY_TASK_ID": "3",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert "--cfg-path a.yaml --grid run.seed=1,2 --index 3" in done.stdout
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 4711_3\n"


def test_tortured_runs_resume_bit_for_bit(mini_gqa: Path) -> None:
    """A short ``make torture`` of runs of two processes, with a fault of each kind."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.robustness.torture", "--data", str(mini_gqa)),
            *("--kills", "1", "--terms", "1", "--corrupts", "1", "--fills", "1", "--stalls", "1"),
            *("--processes", "2", "--seed", "2"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 unreadable" in done.stdout


def test_resumed_processes_with_loader_workers_do_not_stall(mini_gqa: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.robustness.resumes"),
            *("--data", str(mini_gqa), "--count", "1"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 resumes of two processes with loader workers: 0 faults" in done.stdout


def test_a_run_resumes_with_another_number_of_processes(
    config: Configured, tiny_options: list[str], tmp_path: Path
) -> None:
    steady = ["model.fusion.dropout=0", "model.objectives.head.dropout=0", "run.log_freq=1"]
    steady += ["run.min_lr=1e-3", "run.warmup_steps=0", "run.patience=null"]
    undisturbed = train(config(*steady, f"run.output_dir={tmp_path / 'a'}")).output_dir
    two = [*tiny_options, *TINY_MODEL, *steady, "run.name=here", "run.max_epoch=3"]
    done = launch(2, [*two, "run.max_steps=5", "run.batch_size_train=8"])
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match="processes: 2 when saved, now 1"):
        train(config(*steady, "run.batch_size_train=8"))
    runner = train(config(*steady))
    losses = [[line["loss"] for line in lines(each)] for each in (undisturbed, runner.output_dir)]
    assert len(losses[1]) == 9
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_torchrun_restarts_killed_processes_and_forwards_a_signal(
    tiny_options: list[str], tmp_path: Path
) -> None:
    """The signal also reaches the loader workers, whose batches are needed until the end."""
    log = tmp_path / "output" / "elastic" / "log.jsonl"
    options = ["run.name=elastic", "run.resume=auto", "run.save_every_steps=2", "run.log_freq=1"]
    options += ["run.max_epoch=999", "run.patience=null", "run.batch_size_train=8"]
    small = "projects/pnp-vqa/train/gqa_small.yaml"
    command = torchrun_command(2, "--max-restarts=1", "train.py", "--cfg-path", small, "--options")
    with (
        (tmp_path / "out.txt").open("w+") as out,
        subprocess.Popen(
            [*command, *tiny_options, *TINY_MODEL, *options, "run.num_workers=1"],
            cwd=PROJECT,
            stdout=out,
            stderr=out,
        ) as run,
    ):

        def wait_for_step(step: int) -> None:
            while not (log.exists() and [e for e in lines(log.parent) if e["step"] >= step]):
                assert run.poll() is None, Path(out.name).read_text()
                time.sleep(0.05)

        wait_for_step(5)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        wait_until(lambda: "resuming after step" in Path(out.name).read_text())
        wait_for_step(lines(log.parent)[-1]["step"] + 3)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=PATIENCE) != 0
    said = Path(out.name).read_text()
    steps = [line["step"] for line in lines(log.parent)]
    assert steps == list(range(1, len(steps) + 1))
    assert f"SIGTERM: the run stopped at step {len(steps)}" in said
    assert RunState.load(state_paths(log.parent)[0]).step == len(steps)
