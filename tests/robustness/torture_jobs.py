"""Training processes of ``torture.py``, and the files they leave.

Processes are forked from this one, which has imported everything, so they start ten times faster;
they run `train.py` like `python train.py`.
"""

import json
import multiprocessing.process
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.util import _exit_function
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import lavis_ext.runners.launch  # noqa: F401  (before the first fork)
from lavis_ext.runners.state import RunState, state_paths
from tests.tiny import BLIP, EFFICIENT_SAM

PROJECT = Path(__file__).parents[2]
IMAGES = 40
STEPS = 60
TIMED = ("time", "examples_per_second", "waiting_for_data")
MOST_SECONDS = 240.0
"""Timeout of a run, which takes seconds on an idle machine."""
SECONDS_TO_END = 10.0
"""Grace period after SIGTERM; torchrun's is 30 s."""
OPTIONS = [
    *(f"model.streams.grid.{k}={v}" for k, v in BLIP.items() if k != "weights"),
    *(f"model.streams.segmentation.{k}={v}" for k, v in EFFICIENT_SAM.items() if k != "weights"),
    "model.fusion.d_model=32",
    "model.fusion.dropout=0.1",
    "model.objectives.answer.width=32",
    "model.objectives.answer.layers=1",
    "model.objectives.head.width=32",
    "model.objectives.head.dropout=0.1",
    f"datasets.gqa_fusion.mini_gqa.images={IMAGES}",
    "run.small_train_size=37",  # batches of unequal size
    "run.batch_size_eval=16",
    f"run.max_steps={STEPS}",
    "run.max_epoch=99",
    "run.val_every_steps=7",
    "run.patience=null",
    "run.log_freq=1",
    "run.warmup_steps=5",
    "run.device=cpu",
    "run.process_group_timeout_minutes=2",
    "run.data_faults.stall_seconds=30",  # a stuck worker is replaced before the ranks give up
    "run.resume=auto",
    "run.report=false",
    "task.resamples=0",
    "run.watchdog_seconds=25",
]


class Job:
    """Processes of one start of a run."""

    def __init__(self, options: list[str], processes: int, messages: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.started = time.monotonic()
        self._messages = messages
        self.codes: dict[int, int] = {}
        self.pids = [_fork(options, rank, processes, port, messages) for rank in range(processes)]

    def send(self, signum: int, pids: Sequence[int]) -> None:
        for pid in pids:
            os.kill(pid, signum)

    @property
    def alive(self) -> list[int]:
        """Processes that haven't ended yet."""
        return [pid for pid in self.pids if pid not in self.codes]

    @property
    def workers(self) -> list[int]:
        """Loader workers of its processes."""
        found: list[int] = []
        for pid in self.alive:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    @property
    def running(self) -> bool:
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) < len(self.pids)

    def wait_until(self, condition: Callable[[], bool], seconds: float, pause: float) -> bool:
        """Wait until a condition is true; False if the job ends first."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(pause)
        return False

    def end_with(self, dead: list[int]) -> list[int]:
        """End the remaining processes as torchrun does, after some were killed; returns exit codes.

        It sends them SIGTERM and, later, SIGKILL.
        """
        self.wait_until(lambda: all(pid in self.codes for pid in dead), MOST_SECONDS, 0.001)
        for signum, seconds in ((signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, MOST_SECONDS)):
            self.send(signum, self.alive)
            self.wait_until(lambda: False, seconds, 0.01)
        return self.end()

    def end(self, seconds: float = MOST_SECONDS) -> list[int]:
        """Wait for all processes, for at most ``seconds``; returns their exit codes."""
        self.wait_until(lambda: False, seconds, 0.01)
        if self.running:
            self.send(signal.SIGKILL, self.alive)
            said = self._messages.read_text(errors="replace")[-2000:]
            raise SystemExit(f"a job did not end within {seconds:.0f} s; it said:\n{said}")
        return [self.codes[pid] for pid in self.pids]


def _fork(options: list[str], rank: int, world: int, port: int, messages: Path) -> int:
    if pid := os.fork():
        return pid
    code = 1
    # As multiprocessing does in its children: the parent's children aren't this process's.
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    try:
        out = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        small = "projects/pnp-vqa/train/gqa_small.yaml"
        sys.argv = ["train.py", "--cfg-path", small, "--options", *options]
        os.chdir(PROJECT)
        runpy.run_path("train.py", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        # As Python does at exit, where it would wait for a hanging loader worker.
        _exit_function()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def left_by(folder: Path) -> dict[str, Any]:
    """Results of a finished run, without durations."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    state = RunState.load(state_paths(folder)[0])
    tensors = {f"model {name}": tensor for name, tensor in state.model.items()}
    for name, values in state.optimizer.items():
        tensors |= {f"optimizer {name} {key}": value for key, value in values.items()}
    best = load_file(folder / "fusion_encoder_best.safetensors")
    return {
        "lines": [{k: v for k, v in line.items() if k not in TIMED} for line in lines],
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "predictions": json.loads((folder / "testdev_predictions.json").read_text()),
        "stopping": (state.step, state.validated_at, state.best, state.waited),
        "tensors": tensors | {f"best {name}": tensor for name, tensor in best.items()},
    }


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of results of two runs that aren't bitwise equal."""
    first, second = left["tensors"], right["tensors"]
    found = [name for name in left if name != "tensors" and left[name] != right[name]]
    found += sorted(first.keys() ^ second.keys())
    found += [n for n in first.keys() & second.keys() if not torch.equal(first[n], second[n])]
    return found
