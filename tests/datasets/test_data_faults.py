"""Runs retry, skip or stop on data faults, as configured."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets import forks, loader, pictures
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.loader import Loader, LostWorkers
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.runners.launch import started
from lavis_ext.runners.state import RunState, state_paths
from lavis_ext.runners.trainer import Stepper, Trainer
from tests import tiny
from tests.runners.test_runner import TINY_MODEL, UNVALIDATED, lines

pytestmark = pytest.mark.beyond_core

SPLITS = ["train", "val", "testdev"]
SKIP = "run.data_faults.then=skip"


@pytest.fixture
def data(mini_gqa: Path, tmp_path: Path) -> Path:
    """A copy of mini-GQA with images that a test may break."""
    folder = tmp_path / "data"
    shutil.copytree(mini_gqa, folder)
    return folder


@pytest.fixture
def config(
    configured: Callable[..., Config], tiny_options: list[str], data: Path
) -> Callable[..., Config]:
    """Three steps of 16 questions in an epoch."""
    root = f"datasets.gqa_fusion.mini_gqa.root={data}"
    return lambda *options: configured(*tiny_options, *TINY_MODEL, root, *options)


def train(cfg: Config, splits: list[str] = SPLITS) -> Trainer:
    with started(cfg, splits) as runner:
        runner.train()
    return runner


def broken(monkeypatch: pytest.MonkeyPatch, images: set[str], times: int = 10**9) -> list[str]:
    """Makes reading some images fail a number of times; returns the attempted ones."""
    read = ImageFolder.read
    tried: list[str] = []

    def failing(self: ImageFolder, image: str) -> Any:
        if image in images:
            tried.append(image)
            if tried.count(image) <= times:
                raise UserError(f"{image}: the image can't be read (Input/output error).")
        return read(self, image)

    monkeypatch.setattr(ImageFolder, "read", failing)
    return tried


def dataset(data: Path, then: str = "stop", split: str = "train") -> GqaFusionDataset:
    builder = GqaFusionBuilder({"type": "mini", "root": str(data)})
    sizes = {"grid": 32, "segmentation": 32}
    built = builder.build_datasets({split: None}, image_sizes=sizes)
    built[split].faults = DataFaultsConfig(retries=2, then=then)
    return built[split]


def some_rows(train: GqaFusionDataset, images: int) -> tuple[np.ndarray, list[str]]:
    codes = train.image_codes()
    rows = np.flatnonzero(codes < images)
    return rows, sorted({str(train.table.text("image_id", int(row))) for row in rows})


def test_a_temporarily_unreadable_image_is_retried(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dataset(data)
    rows, images = some_rows(train, 3)
    whole = train.__getitems__(BatchRows(rows, 0, len(rows), training=True))
    tried = broken(monkeypatch, {images[1]}, times=2)
    again: Any = train.__getitems__(BatchRows(rows, 0, len(rows), training=True))
    assert len(tried) == 3
    assert torch.equal(again["images"]["grid"], whole["images"]["grid"])  # type: ignore[index]
    assert "unreadable" not in again


def test_pauses_grow_and_are_as_many_as_the_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert list(DataFaultsConfig(retries=3).pauses()) == [0.5, 1, 2]
    assert max(DataFaultsConfig(retries=30).pauses()) == 10
    assert list(DataFaultsConfig(retries=0).pauses()) == []


def test_questions_about_an_unreadable_image_are_left_out_and_the_rest_weighs_the_same(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dataset(data, "skip")
    rows, images = some_rows(train, 3)
    gone = images[1]
    rest = np.array([row for row in rows if train.table.text("image_id", int(row)) != gone])
    wanted: Any = train.__getitems__(BatchRows(rest, 0, len(rows), training=True))
    broken(monkeypatch, {gone})
    found: Any = train.__getitems__(BatchRows(rows, 0, len(rows), training=True))
    (unreadable,) = found.pop("unreadable")
    assert unreadable.image_id == gone
    assert "Input/output error" in unreadable.reason
    asked = {str(train.table.text("question_id", int(row))) for row in rows}
    assert set(unreadable.ids) == asked - set(wanted["ids"]) != set()
    assert found.keys() == wanted.keys()
    assert found["global_size"] == len(rows)
    assert found["images"].keys() == wanted["images"].keys() == {"grid", "segmentation"}
    for name, value in {**wanted.pop("images"), **wanted}.items():
        other = {**found["images"], **found}[name]
        same = torch.equal(other, value) if torch.is_tensor(value) else other == value
        assert same, name


def test_evaluation_asks_about_a_black_image_instead(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = dataset(data, "skip", "val")
    rows, images = some_rows(val, 3)
    whole: Any = val.__getitems__(BatchRows(rows, 0, len(rows)))
    broken(monkeypatch, {images[0]})
    found: Any = val.__getitems__(BatchRows(rows, 0, len(rows)))
    assert found["ids"] == whole["ids"]
    (unreadable,) = found["unreadable"]
    for row, question in enumerate(found["ids"]):
        seen = found["images"]["grid"][found["image_index"][row]]
        if question in unreadable.ids:
            assert not seen.any()
        else:
            assert torch.equal(seen, whole["images"]["grid"][whole["image_index"][row]])


def first_batch(cfg: Config) -> tuple[list[str], list[str]]:
    """Questions of a run's second step, and their images."""
    with started(cfg, SPLITS) as runner:
        rows = list(runner.plan.batches)[1].rows
        return runner.datasets["train"].table.texts(rows, "question_id", "image_id")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_skips_unreadable_images_and_logs_them(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, workers: int, tmp_path: Path
) -> None:
    options = [SKIP, "run.log_freq=1", f"run.num_workers={workers}", *UNVALIDATED]
    asked, images = first_batch(config(*options, f"run.output_dir={tmp_path / 'plan'}"))
    broken(monkeypatch, {images[0]})
    runner = train(config(*options, "run.test_splits=[]", "run.max_epoch=2"))
    entries = lines(runner.output_dir, "left_out")
    lost = {question for line in entries for question in line["ids"]}
    assert asked[0] in lost
    assert {line["image_id"] for line in entries} == {images[0]}
    state = RunState.load(state_paths(runner.output_dir)[0])
    assert state.left_out == sum(len(line["ids"]) for line in entries) == 2 * len(lost)
    assert "were left out" in (runner.output_dir / "log.txt").read_text()
    assert [line["step"] for line in lines(runner.output_dir)] == [1, 2, 3, 4, 5, 6]


def test_a_fully_unreadable_batch_takes_part_in_the_step_with_zero_weight(
    config: Callable[..., Config], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dataset(data, "skip")
    rows, images = some_rows(train, 2)
    broken(monkeypatch, set(images))
    empty: Any = train.__getitems__(BatchRows(rows, 0, len(rows), training=True))
    assert empty["stand_in"]
    assert not empty["images"]["grid"].any()
    assert sum(len(image.ids) for image in empty["unreadable"]) == len(rows)

    weights, windows = [], []
    for stand_in in (True, False):
        model = tiny.make_model({"head": tiny.HEAD})
        run = config("run.init_lr=0.01", "run.max_grad_norm=null").run
        task: Any = SimpleNamespace(train_step=lambda model, samples: model(samples))
        stepper = Stepper(task, model, run, 9, torch.device("cpu"))
        sound = tiny.make_samples(images=4)
        other = tiny.make_samples(images=1, seed=3)
        other |= {"global_size": 5, "stand_in": True}  # type: ignore[typeddict-item]
        group = [sound, other] if stand_in else [{**sound, "global_size": 8 + 5}]
        stepper.step(group, 0, 1)  # type: ignore[arg-type]
        weights.append([tensor.clone() for tensor in stepper.tensors()[0].values()])
        windows.append(stepper.window())
    for with_it, without in zip(*weights, strict=True):
        torch.testing.assert_close(with_it, without, rtol=0, atol=1e-7)
    assert windows[0][1] == windows[1][1] == 8
    assert windows[0][0] == pytest.approx(windows[1][0])


def test_too_many_unreadable_questions_end_the_run(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = [SKIP, "run.log_freq=1", *UNVALIDATED, "run.test_splits=[]"]
    _, images = first_batch(config(*options, f"run.output_dir={tmp_path / 'plan'}"))
    broken(monkeypatch, set(images))
    with pytest.raises(UserError, match=r"most_skipped is 3: .*Input/output error"):
        train(config(*options, "run.data_faults.most_skipped=3"))
    with pytest.raises(UserError, match="the image can't be read"):
        train(config("run.data_faults.then=stop", *options[1:]))


def test_an_evaluation_reports_unreadable_images(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(SKIP, "run.max_steps=1", "run.test_splits=[]")
    with started(cfg, SPLITS) as runner:
        val = runner.datasets["val"]
        image = str(val.table.text("image_id", 0))
        about = val.table.values("image_id")
        broken(monkeypatch, {image})
        metrics = runner.eval_epoch("val")
    assert image in about
    (line,) = lines(runner.output_dir, "unseen")
    assert (line["split"], line["image_id"]) == ("val", image)
    assert metrics["answer_accuracy"] >= 0
    assert "were evaluated with a black image" in (runner.output_dir / "log.txt").read_text()


def test_a_state_keeps_the_count(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = [SKIP, "run.log_freq=1", *UNVALIDATED, "run.test_splits=[]", "run.name=here"]
    _, images = first_batch(config(*options, f"run.output_dir={tmp_path / 'plan'}"))
    broken(monkeypatch, {images[0]})
    train(config(*options, "run.max_steps=3"))
    before = RunState.load(state_paths(tmp_path / "output" / "here")[0]).left_out
    runner = train(config(*options, "run.max_epoch=2", "run.resume=auto"))
    assert RunState.load(state_paths(runner.output_dir)[0]).left_out == 2 * before > 0


class Numbers:
    """A data set with one batch that disturbs its worker on first use."""

    def __init__(self, folder: Path, at: int, do: Callable[[], Any], times: int = 1) -> None:
        self.images = ImageFolder(folder)
        self._marks, self._at, self._do, self._times = folder, at, do, times

    def __getitems__(self, rows: list[int]) -> list[int]:
        done = len(list(self._marks.glob("done*")))
        if self._at in rows and done < self._times:
            (self._marks / f"done{done}").touch()
            self._do()
        return rows

    def collater(self, batch: Any) -> Any:
        return batch


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


BATCHES = [[2 * place, 2 * place + 1] for place in range(9)]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("do", [die, stop])
def test_every_batch_comes_once_and_in_order_despite_dead_or_stalled_workers(
    tmp_path: Path, do: Callable[[], Any], persistent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    faults = DataFaultsConfig(stall_seconds=1.0)
    loader = Loader(Numbers(tmp_path, 7, do), BATCHES, 2, faults, persistent=persistent)
    assert list(loader) == BATCHES
    assert list(loader) == BATCHES
    assert (tmp_path / "done0").exists()


@pytest.mark.parametrize(("do", "reason"), [(die, "was killed by SIGKILL"), (stop, "for 1.5 s")])
def test_the_number_of_worker_restarts_is_limited(
    tmp_path: Path, do: Callable[[], Any], reason: str
) -> None:
    faults = DataFaultsConfig(stall_seconds=1.5, retries=2)
    loader = Loader(Numbers(tmp_path, 7, do, times=99), BATCHES, 1, faults)
    got = []
    started_at = time.monotonic()
    with pytest.raises(UserError) as caught:
        got.extend(iter(loader))
    # The batch before the fault may die with the worker, on its way through the queue.
    assert got in (BATCHES[:2], BATCHES[:3])
    assert reason in str(caught.value)
    assert "3 times in a row (run.data_faults.retries)" in str(caught.value)
    assert len(list(tmp_path.glob("done*"))) == 3
    assert time.monotonic() - started_at < 120
    if do is stop:
        assert str(caught.value).startswith(f"{tmp_path}: no batch of its images was loaded")


def test_a_dead_worker_of_another_loader_disturbs_no_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as validation's, killed while training waits. Its loader replaces it when used again."""
    folders = [tmp_path / name for name in ("other", "own")]
    for folder in folders:
        folder.mkdir()
    faults = DataFaultsConfig()
    earlier = multiprocessing.active_children()
    other = Loader(Numbers(folders[0], -1, die), BATCHES, 1, faults, persistent=True)
    assert list(other) == BATCHES
    (worker,) = set(multiprocessing.active_children()).difference(earlier)

    def kill_the_other() -> None:  # in a worker, whose batch is awaited
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        while forks._state(Path(f"/proc/{worker.pid}")) not in ("Z", ""):
            time.sleep(0.01)

    assert list(Loader(Numbers(folders[1], 7, kill_the_other), BATCHES, 1, faults)) == BATCHES
    assert not caplog.text
    assert list(other) == BATCHES
    assert "was killed by SIGKILL" in caplog.text


def wait_forever() -> None:
    threading.Event().wait()


def test_the_log_says_where_a_stalled_worker_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(forks.STACK_SIGNAL)
    faults = DataFaultsConfig(stall_seconds=1.0)
    loader = Loader(Numbers(tmp_path, 7, wait_forever), BATCHES, 2, faults)
    assert list(loader) == BATCHES
    assert "loader workers that bring nothing" in caplog.text
    assert "in wait_forever" in caplog.text
    assert signal.getsignal(forks.STACK_SIGNAL) is before


def test_a_worker_that_hangs_before_its_start_is_replaced_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock of another thread that was held at the fork is never released in the child."""
    settle_in = loader._settle_in

    def hang_once(*arguments: Any) -> None:
        try:
            (tmp_path / "hung").touch(exist_ok=False)
        except FileExistsError:
            settle_in(*arguments)
        else:
            wait_forever()

    monkeypatch.setattr(loader, "_settle_in", hang_once)  # in forked workers too
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.2)
    faults = DataFaultsConfig(stall_seconds=300)
    assert list(Loader(Numbers(tmp_path, -1, die), BATCHES, 2, faults)) == BATCHES
    assert "hangs before its start" in caplog.text
    assert "in hang_once" in caplog.text


def test_workers_are_forked_while_no_other_thread_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "IDLE_SECONDS", 0.2)
    ends = threading.Event()

    def run() -> None:
        while not ends.is_set():
            pass

    thread = threading.Thread(target=run)
    thread.start()
    assert not forks.wait_for_idle_threads()
    ends.set()
    thread.join()
    monkeypatch.setattr(forks, "IDLE_SECONDS", 60.0)
    assert forks.wait_for_idle_threads()


def test_a_worker_that_dies_during_a_step_raises_where_batches_are_awaited(
    tmp_path: Path,
) -> None:
    loader = Loader(Numbers(tmp_path, -1, die), BATCHES, 1, DataFaultsConfig())
    others = set(multiprocessing.active_children())  # of tests before this one
    got = []
    for batch in loader:
        got.append(batch)
        if batch == BATCHES[2]:
            (worker,) = set(multiprocessing.active_children()) - others
            worker.kill()
            time.sleep(0.3)  # torch would raise here
    assert got == BATCHES


@pytest.mark.parametrize("fault", ["killed", "stalled"])
def test_a_run_with_dead_or_stalled_workers_equals_an_undisturbed_one(
    config: Callable[..., Config],
    data: Path,
    tmp_path: Path,
    before_step: Callable[[int, Callable[[], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    options = ["run.log_freq=1", "run.num_workers=1", "run.max_epoch=2", "run.test_splits=[]"]
    options += ["run.data_faults.stall_seconds=2", "model.fusion.dropout=0.2"]
    undisturbed = train(config(*options, f"run.output_dir={tmp_path / 'a'}")).output_dir
    if fault == "killed":
        before_step(2, lambda: [each.kill() for each in multiprocessing.active_children()])
    else:
        with started(config(*options, f"run.output_dir={tmp_path / 'plan'}"), SPLITS) as runner:
            rows = list(runner.plan.batches)[2].rows
            dataset = runner.datasets["train"]
            path = dataset.images.path(str(dataset.table.text("image_id", int(rows[0]))))
        read, start_over = pictures.read_image, Loader._continue_or_raise
        stalled = tmp_path / "stalled"
        stalled.touch()

        def stall(each: Path) -> Any:
            while each == path and stalled.exists():
                time.sleep(0.1)
            return read(each)

        def mend_at_the_second_stall(loader: Loader, lost: LostWorkers, *counts: int) -> None:
            if counts[0] == 2:
                stalled.unlink(missing_ok=True)
            start_over(loader, lost, *counts)

        monkeypatch.setattr(pictures, "read_image", stall)  # in forked workers too
        monkeypatch.setattr(Loader, "_continue_or_raise", mend_at_the_second_stall)
    found = train(config(*options, f"run.output_dir={tmp_path / 'b'}")).output_dir
    assert "new loader workers continue with batch" in (found / "log.txt").read_text()
    ours, theirs = (RunState.load(state_paths(folder)[0]).model for folder in (undisturbed, found))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[line["loss"] for line in lines(folder)] for folder in (undisturbed, found)]
    assert losses[0] == losses[1]
