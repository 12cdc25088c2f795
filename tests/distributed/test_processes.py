"""Training on several processes: same results as one process, and a clean end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore, run
from torch.distributed.elastic.multiprocessing.api import SignalException

from lavis_ext import torchrun as short_torchrun
from lavis_ext.common.errors import UserError, command
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.distributed import peers, watchdog
from lavis_ext.distributed.peers import COMPUTING, LOADING, At, Heard, Peers
from lavis_ext.distributed.process_group import at, greatest, process_group
from lavis_ext.runners.trainer import Stepper
from tests.launching import torchrun, wait_until
from tests.robustness.torture_jobs import Job
from tests.runners.test_runner import TINY_MODEL, UNVALIDATED

PROJECT = Path(__file__).parents[2]
STEPS = 10


def train(processes: int, options: list[str]) -> subprocess.CompletedProcess[str]:
    small = "projects/pnp-vqa/train/gqa_small.yaml"
    return torchrun(processes, "train.py", "--cfg-path", small, "--options", *options)


def test_two_processes_train_as_one_with_the_same_global_batch(
    tiny_options: list[str], tmp_path: Path
) -> None:
    """docs/traps.md, 6: the job ends by itself after the last evaluation."""
    logged, metrics, predictions = [], [], []
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
        metrics.append(json.loads((folder / "metrics.json").read_text()))
        predictions.append(json.loads((folder / "testdev_predictions.json").read_text()))
        scores = json.loads((folder / "testdev_scores.json").read_text())
        assert scores["questions"] == scores["metrics"]["accuracy"]["count"] == len(predictions[-1])
        assert (folder / "report.html").exists()
    assert len(logged[0]) == STEPS
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)
    for split in ("val", "testdev"):
        assert metrics[0][split] == pytest.approx(metrics[1][split], abs=1e-3)
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
        entries = map(json.loads, lines)
        losses.append([entry["loss"] for entry in entries if entry["kind"] == "train"])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def in_rank(monkeypatch: pytest.MonkeyPatch, rank: int, step: int, do: Callable[[], Any]) -> None:
    """Call ``do`` in one process of the following jobs at the beginning of a step."""
    take = Stepper.step

    def watched(self: Stepper, group: Any, epoch: int, steps: int) -> torch.Tensor:
        if steps == step - 1 and int(os.environ.get("RANK", 0)) == rank:
            do()
        return take(self, group, epoch, steps)

    monkeypatch.setattr(Stepper, "step", watched)


def raising(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def job(
    tiny_options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[int], str]]:
    """``job("run.max_steps=9")``: exit codes and output of two processes, not of torchrun.

    Their workers' included, no process is left.
    """

    def run(*options: str) -> tuple[list[int], str]:
        messages = tmp_path / "messages.txt"
        given = [*tiny_options, *TINY_MODEL, "run.max_epoch=99", "run.num_workers=1", *options]
        given += ["run.batch_size_train=8", *UNVALIDATED, "run.test_splits=[]"]
        with capfd.disabled():
            codes = Job(given, 2, messages).end()
        said = messages.read_text()
        wait_until(lambda: not writing(messages), lambda: said)
        return codes, said

    return run


def writing(messages: Path) -> list[str]:
    """Living processes that write there: ranks, and their workers."""
    found = []
    for output in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):
            if output.readlink() == messages:
                found.append(output.parts[2])
    return found


@pytest.fixture
def pair(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[list[int], str]]:
    """``pair(rank, do)``: as ``job``, for two processes that only count, one calling ``do``.

    It does so at 5; ``None`` means both.
    """

    def counting(rank: int | None, do: Callable[[], Any], seconds: float) -> None:
        with process_group(torch.device("cpu"), seconds / 60, 2):
            for step in range(1, 9):
                at(COMPUTING, step)
                if step == 5 and rank in (None, int(os.environ["RANK"])):
                    do()
                greatest([step])

    def run(rank: int | None, do: Callable[[], Any], seconds: float = 600) -> tuple[list[int], str]:
        messages = tmp_path / "messages.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        pids = []
        with capfd.disabled():
            for each in range(2):
                if not (pid := os.fork()):
                    out = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    os.dup2(out, 1)
                    os.dup2(out, 2)
                    os.environ |= {"RANK": str(each), "WORLD_SIZE": "2"}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                    code = 0
                    try:
                        command(counting)(rank, do, seconds)
                    except SystemExit as end:
                        code = int(end.code or 0)
                    sys.stderr.flush()
                    os._exit(code)
                pids.append(pid)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = messages.read_text()
        wait_until(lambda: not writing(messages), lambda: said)
        return codes, said

    return run


@pytest.mark.parametrize(
    ("rank", "do", "code", "shown", "reason"),
    [
        (0, killed, -signal.SIGKILL, "", "without an error, as if killed"),
        (1, killed, -signal.SIGKILL, "", "without an error, as if killed"),
        (1, raising(UserError("Wrong.")), 2, "error: Wrong.", "(Wrong.)"),
        (0, raising(KeyError("bug")), 1, "KeyError: 'bug'", "(KeyError: 'bug')"),
        (1, raising(RuntimeError("bug")), 1, "RuntimeError: bug", "(RuntimeError: bug)"),
        (1, raising(MemoryError("full")), 1, "MemoryError: full", "(MemoryError: full)"),
        (0, raising(torch.OutOfMemoryError("GPU")), 1, "OutOfMemoryError: GPU", "Error: GPU)"),
    ],
    ids=["killed", "other killed", "user", "bug", "runtime", "memory", "GPU memory"],
)
def test_the_first_failing_process_ends_the_job_with_its_error(
    pair: Callable[..., tuple[list[int], str]],
    rank: int,
    do: Callable[[], None],
    code: int,
    shown: str,
    reason: str,
) -> None:
    started = time.monotonic()
    codes, said = pair(rank, do)
    assert time.monotonic() - started < 300
    assert codes == [code, 1] if rank == 0 else [1, code]
    (line,) = re.findall(r"^rank . has ended .*", said, re.MULTILINE)
    assert line.startswith(f"rank {rank} has ended ")
    assert f"{reason}; this process (rank {1 - rank}) ends too, " in line
    assert said.index(shown) <= said.index(line)
    assert said.count("Traceback") == (code == 1)
    assert "gloo" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_detected_outside_collectives(
    pair: Callable[..., tuple[list[int], str]], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(peers, "MISSED_BEATS", 6)
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.5)
    started = time.monotonic()
    codes, said = pair(
        None, lambda: killed() if os.environ["RANK"] == str(rank) else time.sleep(600)
    )
    assert time.monotonic() - started < 300
    assert sorted(codes) == [-signal.SIGKILL, 1]
    assert codes[rank] == -signal.SIGKILL
    assert f"rank {rank} has ended without an error, as if killed; this process" in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_briefly_stopped_process_ends_no_job(
    pair: Callable[..., tuple[list[int], str]], rank: int
) -> None:
    def stop() -> None:
        wake = f"sleep 3; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", wake], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.kill(os.getpid(), signal.SIGSTOP)

    codes, said = pair(rank, stop)
    assert codes == [0, 0]
    assert "ended" not in said


def test_an_error_raised_by_all_processes_is_shown_once(
    pair: Callable[..., tuple[list[int], str]],
) -> None:
    codes, said = pair(None, raising(UserError("All wrong.")))
    assert codes == [2, 2]
    assert said.count("error: All wrong.") == 1


def test_processes_that_end_normally_print_nothing(
    pair: Callable[..., tuple[list[int], str]],
) -> None:
    assert pair(0, lambda: None) == ([0, 0], "")
    codes, said = pair(None, raising(SystemExit(143)))
    assert (codes, said) == ([143, 143], "")


def test_a_process_that_is_late_is_waited_for_no_longer_than_the_timeout(
    pair: Callable[..., tuple[list[int], str]], tmp_path: Path
) -> None:
    messages = tmp_path / "messages.txt"
    codes, said = pair(1, lambda: wait_until(lambda: "rank 0 has" in messages.read_text()), 6)
    assert codes == [2, 1]
    assert re.search(r"^error: rank 0 has been computing step 5 for \d+ s", said, re.MULTILINE)
    assert re.search(r"; rank 1 has been computing step 5 for \d+ s\. This process ends", said)
    assert "0.1 minutes for the others (run.process_group_timeout_minutes)" in said
    assert "Traceback" not in said


def test_a_killed_process_of_a_training_run_leaves_no_process(
    job: Callable[..., tuple[list[int], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_rank(monkeypatch, 1, 2, killed)
    codes, said = job()
    assert codes == [1, -signal.SIGKILL]
    assert "rank 1 has ended without an error" in said


def test_a_rank_with_unreadable_batches_steps_with_the_others(
    job: Callable[..., tuple[list[int], str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    see = GqaFusionDataset._seen

    def blind(self: GqaFusionDataset, images: list[str], epoch: int) -> Any:
        if epoch == 1 and os.environ.get("RANK") == "1":
            raise UserError("The folder doesn't answer.")
        return see(self, images, epoch)

    monkeypatch.setattr(GqaFusionDataset, "_seen", blind)
    options = ["run.max_steps=9", "run.log_freq=1", "run.data_faults.then=skip"]
    codes, said = job(*options)
    assert codes == [0, 0], said
    (folder,) = (tmp_path / "output").iterdir()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    left_out = [line for line in lines if line["kind"] == "left_out"]
    assert {line["step"] for line in left_out} == {4, 5, 6}
    assert 16 <= sum(len(line["ids"]) for line in left_out) <= 32
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 10))
    assert "The folder doesn't answer." in said


def test_a_rank_with_a_slow_worker_is_the_one_waited_for(
    job: Callable[..., tuple[list[int], str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    get = GqaFusionDataset.__getitems__
    messages = tmp_path / "messages.txt"
    warning = re.compile(
        r"rank 0 has been computing step 4 for \d+ s, waiting for rank 1, which has been loading "
        r"data for step 4 for \d+ s"
    )

    def slow(self: GqaFusionDataset, batch: BatchRows) -> Any:
        if batch.training and os.environ.get("RANK") == "1" and batch.epoch == 1:
            wait_until(lambda: warning.search(messages.read_text()))
        return get(self, batch)

    monkeypatch.setattr(GqaFusionDataset, "__getitems__", slow)
    codes, said = job("run.watchdog_seconds=1.5", "run.max_steps=4")
    assert codes == [0, 0]
    assert warning.search(said)


def test_the_watchdog_warns_in_one_process_and_never_raises(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.02)
    loading = re.compile(r"this process has been loading data for step 7 for \d s")
    with caplog.at_level("WARNING"), process_group(torch.device("cpu"), 10, 0.2):
        at(LOADING, 7)
        wait_until(lambda: loading.search(caplog.text))
    caplog.clear()
    with caplog.at_level("WARNING"), process_group(torch.device("cpu"), 10, 60):
        at(COMPUTING, 7)
        time.sleep(0.2)
    assert not caplog.text


def test_a_stopped_process_is_distinguished_from_a_slow_one() -> None:
    now = time.monotonic()
    assert "has been loading data for step 3 for 5 s" in str(Heard(At(3, LOADING, now - 5), now))
    stopped = Heard(At(3, LOADING, now - 60), now - 50)
    assert "was loading data for step 3 at its last heartbeat, 50 s ago" in str(stopped)


def test_an_unknown_client_of_the_store_is_ignored() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True)
    first = Peers(0, 2, store, host=0)
    for message in (b"hello\n", b'{"rank": 1, "failed": "guessed"}\n', b"\xff\n", b"[1]\n"):
        with socket.create_connection(("127.0.0.1", store.port)) as stranger:
            stranger.sendall(99 * message)
    second = Peers(1, 2, store, host=0)
    second.at = At(4, COMPUTING, time.monotonic())
    first.at = At(3, LOADING, time.monotonic())
    wait_until(lambda: list(first.behind()) == list(second.behind()) == [0])
    second.leave()
    first.leave()
    time.sleep(0.3)
    assert first.ended is second.ended is None


def test_a_user_error_ends_all_processes_and_is_in_torchruns_summary(
    tiny_options: list[str], tmp_path: Path
) -> None:
    done = train(2, [*tiny_options, *TINY_MODEL, "run.trainable=[fision.*]"])
    assert done.returncode != 0
    ours, _, torchruns = done.stderr.partition("Traceback")
    message = "run.trainable: no parameter matches 'fision.*'. Did you mean 'fusion.*'?"
    assert ours.count(f"error: {message}") == 1
    assert message in torchruns[torchruns.index("Root Cause") :]
    assert not (tmp_path / "output").exists()


WRONG_KEY = ["--cfg-path", "projects/pnp-vqa/train/gqa_small.yaml", "--options", "run.max_epchs=3"]
NO_SUCH_KEY = "error: run.max_epchs: there is no such key. Did you mean 'max_epoch'?"


@pytest.mark.parametrize(
    ("elastic", "arguments", "message"),
    [
        (True, WRONG_KEY, NO_SUCH_KEY),
        (False, WRONG_KEY, NO_SUCH_KEY),
        (True, ["--dry-run"], "error: the following arguments are required: --cfg-path\nusage: "),
    ],
)
def test_an_error_before_the_process_group_is_shown_once(
    elastic: bool, arguments: list[str], message: str
) -> None:
    """With torchrun, whose processes end with the first, and without."""
    arguments = ["train.py", *arguments]
    if elastic:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lavis_ext.torchrun", "--standalone"),
                *("--nproc_per_node=2", *arguments),
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        said = done.stderr
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        both = [
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=PROJECT,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        said = "".join(each.communicate(timeout=240)[1] for each in both)
        assert [each.returncode for each in both] == [2, 2]
    assert said.count(message) == 1


def test_torchrun_with_its_processes_code_after_a_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended_by_a_signal(arguments: object) -> None:
        raise SignalException("Process 1 got signal: 15", sigval=signal.SIGTERM)

    monkeypatch.setattr(run, "main", ended_by_a_signal)
    with pytest.raises(SystemExit) as ended:
        short_torchrun.main([])
    assert ended.value.code == 143
    assert capsys.readouterr().err == ""
