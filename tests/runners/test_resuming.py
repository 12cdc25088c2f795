"""A run that was cut off goes on as if nothing had happened, or says why it can't."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.launch import started
from lavis_ext.runners.resuming import check_fits
from lavis_ext.runners.run_folder import LOCK
from lavis_ext.runners.state import RunState, random_states, set_random_states, state_paths
from lavis_ext.runners.stop_signals import StopSignals
from lavis_ext.runners.trainer import Stepper, Trainer
from tests.distributed.test_processes import train as launch
from tests.launching import torchrun_command
from tests.robustness.torture_jobs import differences, left_by
from tests.runners.test_runner import BEST, TINY_MODEL, lines

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
SPLITS = ["train", "val", "testdev"]
Configured = Callable[..., Config]


class Killed(BaseException):
    """Ends a run where nothing of it can react."""


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    """Nine steps in three epochs, with dropout; a line of the log spans two steps."""
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


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """``before_step(5, do)`` lets a run ``do`` something when it begins step 5, once."""

    def at(wanted: int, do: Callable[[], Any]) -> None:
        step = Stepper.step
        done = []

        def watched(self: Stepper, group: Any, epoch: int, steps: int) -> torch.Tensor:
            if steps == wanted - 1 and not done:
                done.append(True)
                do()
            return step(self, group, epoch, steps)

        monkeypatch.setattr(Stepper, "step", watched)

    return at


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
def test_a_run_that_was_killed_ends_as_one_that_was_not(
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


def test_no_question_is_repeated_or_left_out_and_no_image_read_for_nothing(
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
    """Without the best metric 0.3 would be one; without what was waited, steps 5 and 6 follow."""
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


def test_a_run_whose_best_weights_are_gone_does_not_go_on(
    config: Configured, before_step: Any, tmp_path: Path
) -> None:
    before_step(6, kill)
    cut_off(config())
    (tmp_path / "output" / "here" / BEST).unlink()
    with pytest.raises(UserError, match="best weights of the run, is missing"):
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
def test_a_damaged_state_is_left_out_for_the_one_before_it(
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
    assert "It is left out for the one before it." in out
    assert "goes on after step 2" in out
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
    with pytest.raises(UserError, match="there is no sound state"):
        train(config(f"run.resume={tmp_path}"))
    assert not (tmp_path / "log.jsonl").exists()
    for path in state_paths(folder):
        flipped(path)
    with pytest.raises(UserError, match=r"there is no sound state .*remove the folder"):
        train(config())


def test_without_a_name_the_newest_run_that_has_not_ended_goes_on(
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


def test_an_evaluation_can_not_be_resumed(
    config: Configured, configured: Configured, tiny_options: list[str]
) -> None:
    folder = train(config("run.max_steps=1")).output_dir
    cfg = configured(
        *(option for option in tiny_options if "mini_gqa" in option or "output_dir" in option),
        *("run.num_workers=0", "run.resume=auto", f"model.fusion_weights={folder / BEST}"),
        cfg_path="projects/pnp-vqa/eval/gqa_small_eval.yaml",
    )
    with (
        pytest.raises(UserError, match=r"run\.resume: an evaluation isn't saved"),
        started(cfg, ["val"]),
    ):
        pass


def test_an_interrupt_before_training_ends_with_its_code_and_no_traceback() -> None:
    @command
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130


def test_a_name_that_is_taken_and_restarts_without_resume_are_refused(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config("run.max_steps=1"))
    with pytest.raises(UserError, match=r"run\.name: .*here is there already"):
        train(config("run.resume=null"))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match=r"--max-restarts .* set run\.resume=auto"):
        train(config("run.resume=null", "run.name=other"))


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_is_that_of_a_folder(config: Configured, name: str) -> None:
    with pytest.raises(UserError, match=r"run\.name is '.*'; it must be the name of a folder"):
        config(f"run.name='{name}'")


def test_what_can_not_change_is_listed_and_what_may_is_said(
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


def test_other_data_under_the_same_config_are_refused(config: Configured, tmp_path: Path) -> None:
    cfg = config("run.max_steps=2")
    folder = train(cfg).output_dir
    state = RunState.load(state_paths(folder)[0])
    check_fits(state, cfg, state.config, state.batches)
    with pytest.raises(UserError, match="the data set's questions or images are others"):
        check_fits(state, cfg, state.config, state.batches | {"layout": "other"})


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
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_ends_the_run_after_the_step_with_its_state_saved(
    config: Configured, before_step: Any, tmp_path: Path, signum: int, code: int
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    before_step(5, lambda: os.kill(os.getpid(), signum))
    handlers = signal.getsignal(signum)
    with pytest.raises(SystemExit) as caught, started(config(), SPLITS) as runner:
        runner.train()
    assert caught.value.code == code
    assert RunState.load(state_paths(runner.output_dir)[0]).step == 5
    assert signal.getsignal(signum) is handlers
    assert differences(undisturbed, left_by(train(config()).output_dir)) == []


def test_a_validation_that_is_cut_short_is_done_anew(
    config: Configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = left_by(train(config(f"run.output_dir={tmp_path / 'a'}")).output_dir)
    with started(config("run.save_every_steps=null"), SPLITS) as runner:
        valid_step = runner.task.valid_step

        def terminated(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            return valid_step(*arguments)

        monkeypatch.setattr(runner.task, "valid_step", terminated)
        with pytest.raises(SystemExit):
            runner.train()
    state = RunState.load(state_paths(runner.output_dir)[0])
    assert (state.step, state.validated_at, state.best) == (3, -1, None)
    assert lines(runner.output_dir, "val") == []
    assert differences(undisturbed, left_by(train(config()).output_dir)) == []


def in_child(do: Callable[[], Any]) -> int:
    """The process id of a child that does something and exits with 0."""
    if pid := os.fork():
        return pid
    try:
        do()
    finally:
        os._exit(0)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("elastic", "codes"), [(False, 143), (True, 0)])
def test_a_second_signal_ends_a_process_that_hangs_but_no_echo_of_the_first_does(
    monkeypatch: pytest.MonkeyPatch, elastic: bool, codes: int
) -> None:
    """torchrun passes on what a whole job may have been sent already."""
    if elastic:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    reads, writes = os.pipe()

    def hang() -> None:
        with StopSignals():
            os.write(writes, b".")
            threading.Event().wait(1.0 if elastic else 60.0)

    pid = in_child(hang)
    os.read(reads, 1)
    for _ in range(2):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.4)
    assert exit_code(pid) == codes


def test_loader_workers_live_through_signals_for_all_and_end_with_an_error(tmp_path: Path) -> None:
    """Python ends workers by SIGTERM and waits for them: had they ignored it, it would hang."""
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
        for signum in (signal.SIGTERM, signal.SIGINT):
            os.killpg(run.pid, signum)
        _, err = run.communicate(timeout=30)
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

for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, lambda *_: None)
loader = Loader(Slow(), [[row] for row in range(9)], 1, DataFaultsConfig(), persistent=True)
for (row,) in loader:
    print(row, flush=True)
    if row == 3:
        raise RuntimeError("as late as batch 3")
"""


def test_a_lock_is_free_when_the_process_is_gone_though_its_children_live(tmp_path: Path) -> None:
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
    """Lets the loss, or one gradient, not be finite in ``steps``.

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
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
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


def test_all_processes_skip_a_step_that_one_of_them_finds_not_finite(
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


def test_too_many_in_a_row_end_the_run_with_the_last_state_kept(
    config: Configured, monkeypatch: pytest.MonkeyPatch, before_step: Any
) -> None:
    spoilt(monkeypatch, {4, 5, 6, 7}, "loss")
    before_step(6, kill)
    cut_off(config("run.max_skipped_steps=3"))  # the state of step 4 has one in a row
    with (
        pytest.raises(UserError, match=r"step 6: .* in 3 steps in a row .*max_skipped_steps"),
        started(config("run.max_skipped_steps=3"), SPLITS) as runner,
    ):
        runner.train()
    assert [line["step"] for line in lines(runner.output_dir, "skipped")] == [4, 5, 6]
    state = RunState.load(state_paths(runner.output_dir)[0])
    assert state.step == 4
    assert all(torch.isfinite(tensor).all() for tensor in state.model.values())


def test_running_statistics_are_part_of_the_state() -> None:
    """Nothing here has any, but a fusion of one's own may."""

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
    with pytest.raises(UserError, match=r"other trained parameters: 1\.bias"):
        fresh.load(saved({n: t for n, t in tensors.items() if n != "1.bias"}, optimizer))


def saved(tensors: Any, optimizer: Any) -> Any:
    """A state as far as a stepper looks into it."""
    return SimpleNamespace(
        renamed_model=lambda old: tensors, renamed_optimizer=lambda old: optimizer, ranks=[]
    )


def test_all_random_numbers_go_on() -> None:
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


def test_wandb_and_tensorboard_go_on_in_the_same_run(
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
            "told = [os.environ[name] for name in names]\n"
            "sys.stdout.write(' '.join([*told, *sys.argv[1:]]) + '\\n')",
            0,
            False,
        ),
    ],
)
def test_the_slurm_script_requeues_what_was_preempted(
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
        timeout=60,
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


def test_tormented_processes_go_on_bit_for_bit(mini_gqa: Path) -> None:
    """A small count of what ``make torture`` does for as long as one likes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.robustness.torture", "--data", str(mini_gqa)),
            *("--kills", "3", "--terms", "2", "--corrupts", "2", "--fills", "2", "--stalls", "1"),
            *("--processes", "1", "2", "--seed", "1"),
        ],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 unreadable" in done.stdout


def test_a_run_goes_on_with_another_number_of_processes_that_share_its_batches(
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


def test_torchrun_starts_killed_processes_anew_and_passes_a_signal_on(
    tiny_options: list[str], tmp_path: Path
) -> None:
    """Its signal reaches the loader workers too, whose batches are needed to the end."""
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
            env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        time.sleep(1)
        wait_for_step(lines(log.parent)[-1]["step"] + 3)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) != 0
    said = Path(out.name).read_text()
    assert "the run goes on after step" in said
    steps = [line["step"] for line in lines(log.parent)]
    assert steps == list(range(1, len(steps) + 1))
    assert f"SIGTERM: the run stopped at step {len(steps)}" in said
    assert RunState.load(state_paths(log.parent)[0]).step == len(steps)
