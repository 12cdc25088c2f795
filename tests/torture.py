"""Kill training runs, let them go on, and look at what is left.

    make torture N=200
    python tests/torture.py --kills 50 --terms 20 --processes 1 2 --seed 0
    python tests/torture.py --one-killed 10

Each series runs a tiny model on mini-GQA to its end once, undisturbed, then again and again with
SIGKILL at random moments, every second one in the middle of writing a state, and with SIGTERM.
After each death every state has to be readable; at the end of each run weights, optimizer, losses
and figures have to be those of the undisturbed run, bit for bit.

Processes are forked from this one, which has imported everything: they start in a tenth of the
time, and run `train.py` as `python train.py` does.
"""

import argparse
import json
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.util import _exit_function
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import BLIP, EFFICIENT_SAM
from torture_one_killed import one_killed

import lavis_ext.runners.launch  # noqa: F401  (before the first fork)
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.runners.run_state import DamagedState, RunState, state_paths

PROJECT = Path(__file__).parents[1]
IMAGES = 40
STEPS = 60
TIMED = ("time", "questions_per_second", "waiting_for_data")
MOST_SECONDS = 60.0
SECONDS_TO_END = 10.0
"""What torchrun grants is 30."""
OPTIONS = [
    *(f"model.blip.{k}={v}" for k, v in BLIP.items() if k != "weights"),
    *(f"model.efficient_sam.{k}={v}" for k, v in EFFICIENT_SAM.items() if k != "weights"),
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
    "run.process_group_timeout_minutes=1",
    "run.resume=auto",
    "run.report=false",
    "run.resamples=0",
]


class Job:
    """The processes of one life of a run."""

    def __init__(self, options: list[str], processes: int, messages: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.started = time.monotonic()
        self.codes: dict[int, int] = {}
        self.pids = [_fork(options, rank, processes, port, messages) for rank in range(processes)]

    def send(self, signum: int, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signum)

    @property
    def running(self) -> bool:
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) < len(self.pids)

    def wait_until(self, condition: Callable[[], bool], seconds: float, pause: float) -> bool:
        """Whether the condition came true while the job ran."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(pause)
        return False

    def end_with(self, dead: list[int]) -> list[int]:
        """The exit codes after these processes were killed; as torchrun ends those that are left.

        It sends them SIGTERM and, later, SIGKILL.
        """
        self.wait_until(lambda: all(pid in self.codes for pid in dead), MOST_SECONDS, 0.001)
        for signum, seconds in ((signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, MOST_SECONDS)):
            self.send(signum, [pid for pid in self.pids if pid not in self.codes])
            self.wait_until(lambda: False, seconds, 0.01)
        return self.end()

    def end(self) -> list[int]:
        """The exit codes, once every process has ended."""
        self.wait_until(lambda: False, MOST_SECONDS, 0.01)
        if self.running:
            self.send(signal.SIGKILL, [pid for pid in self.pids if pid not in self.codes])
            raise SystemExit(f"a job did not end within {MOST_SECONDS:.0f} s")
        return [self.codes[pid] for pid in self.pids]


def _fork(options: list[str], rank: int, world: int, port: int, messages: Path) -> int:
    if pid := os.fork():
        return pid
    code = 1
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
        # What Python does at exit: a loader worker that doesn't end would keep it waiting.
        _exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def left_by(folder: Path) -> dict[str, Any]:
    """What a run that has ended leaves, but for the time things took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    state = RunState.load(state_paths(folder)[0])
    tensors = {f"model {name}": tensor for name, tensor in state.model.items()}
    for name, values in state.optimizer.items():
        tensors |= {f"optimizer {name} {key}": value for key, value in values.items()}
    best = load_file(folder / "fusion_encoder_best.safetensors")
    return {
        "lines": [{k: v for k, v in line.items() if k not in TIMED} for line in lines],
        "figures": json.loads((folder / "metrics.json").read_text()),
        "predictions": json.loads((folder / "testdev_predictions.json").read_text()),
        "stopping": (state.step, state.validated_at, state.best, state.waited),
        "tensors": tensors | {f"best {name}": tensor for name, tensor in best.items()},
    }


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Which parts of what two runs leave aren't equal, bit for bit."""
    first, second = left["tensors"], right["tensors"]
    found = [name for name in left if name != "tensors" and left[name] != right[name]]
    found += sorted(first.keys() ^ second.keys())
    found += [n for n in first.keys() & second.keys() if not torch.equal(first[n], second[n])]
    return found


class Series:
    """Runs with one number of processes.

    Attributes:
        counts: what happened.
        faults: what must not have.
    """

    def __init__(self, folder: Path, data: Path, processes: int, seed: int) -> None:
        self._folder, self._data, self._processes = folder, data, processes
        self._random = random.Random(f"{seed} {processes}")
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest_save = self.slowest_end = 0.0
        started = time.monotonic()
        self._start("undisturbed", 9).end()
        self._whole = time.monotonic() - started
        self._expected = left_by(folder / "undisturbed")

    def torture(self, kills: int, terms: int) -> None:
        """Runs until there were so many deaths of each kind."""
        wanted = Counter(kills=kills, terms=terms)
        while any(self.counts[kind] < wanted[kind] for kind in wanted):
            name = f"run{self.counts['runs']}"
            self.counts["runs"] += 1
            saves = self._random.choice((1, 3, 8))
            while True:
                before = self._bytes(name)
                job = self._start(name, saves)
                open_kinds = [kind for kind in wanted if self.counts[kind] < wanted[kind]]
                kind = self._random.choice(open_kinds) if open_kinds else None
                if kind == "kills":
                    self._kill(job, self._folder / name)
                elif kind == "terms":
                    self._terminate(job, self._folder / name, before)
                codes = job.end()
                self._check_states(name)
                if codes == [0] * self._processes:
                    break
                if kind is None:
                    self.faults.append(f"{name}: ended with {codes}, see {self._messages(name)}")
                    return
            if found := differences(self._expected, left_by(self._folder / name)):
                self.faults.append(f"{name}: other {', '.join(found[:9])}")

    def _start(self, name: str, saves: int) -> Job:
        options = [
            *OPTIONS,
            f"run.name={name}",
            f"run.output_dir={self._folder}",
            f"run.save_every_steps={saves}",
            f"run.batch_size_train={16 // self._processes}",
            f"run.num_workers={self._random.choice((0, 1))}",
            f"datasets.gqa_fusion.mini_gqa.root={self._data}",
        ]
        return Job(options, self._processes, self._messages(name))

    def _messages(self, name: str) -> Path:
        return self._folder / f"{name}.txt"

    def _bytes(self, name: str) -> int:
        path = self._folder / name / "log.jsonl"
        return path.stat().st_size if path.exists() else 0

    def _kill(self, job: Job, folder: Path) -> None:
        """SIGKILL for one process or all, at any time or while a state is being written."""

        def saving() -> bool:
            return any(folder.glob(".state_*"))

        # What an earlier death has left is removed when the run goes on.
        job.wait_until(lambda: not saving(), MOST_SECONDS, 0.001)
        job.wait_until(lambda: False, self._random.uniform(0, self._whole), 0.001)
        if self._random.random() < 0.5:
            job.wait_until(saving, MOST_SECONDS, 0)
        if not job.running:
            return
        pids = self._random.choice([job.pids, [self._random.choice(job.pids)]])
        killed = time.monotonic()
        dead = [pid for pid in pids if pid not in job.codes]
        job.send(signal.SIGKILL, dead)
        codes = job.end_with(dead)
        self.slowest_end = max(self.slowest_end, time.monotonic() - killed)
        if 0 in codes:
            return  # it had ended
        self.counts["kills"] += 1
        self.counts["kills while saving"] += saving()
        self.counts["kills of one of several"] += len(pids) < len(job.pids)

    def _terminate(self, job: Job, folder: Path, before: int) -> None:
        """SIGTERM for one process or all, once it trains."""
        log = folder / "log.jsonl"
        job.wait_until(lambda: self._bytes(folder.name) > before, MOST_SECONDS, 0.001)
        job.wait_until(lambda: False, self._random.uniform(0, self._whole / 3), 0.001)
        if not job.running:
            return
        sent = time.monotonic()
        job.send(signal.SIGTERM, self._random.choice([job.pids, [self._random.choice(job.pids)]]))
        codes = job.end()
        if codes == [0] * self._processes:
            return  # it had ended
        self.counts["terms"] += 1
        self.slowest_save = max(self.slowest_save, time.monotonic() - sent)
        if codes != [143] * self._processes:
            self.faults.append(f"{folder.name}: SIGTERM ended it with {codes}")
        trained = [json.loads(line) for line in log.read_text().splitlines()]
        last = max(line["step"] for line in trained if line["kind"] == "train")
        self.counts["steps lost to SIGTERM"] += last - RunState.load(state_paths(folder)[0]).step

    def _check_states(self, name: str) -> None:
        for path in state_paths(self._folder / name):
            self.counts["states read"] += 1
            try:
                RunState.load(path)
            except DamagedState as error:
                self.counts["unreadable states"] += 1
                self.faults.append(str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill training runs and let them go on.")
    parser.add_argument("--kills", type=int, default=50, help="by SIGKILL, in all")
    parser.add_argument("--terms", type=int, default=20, help="by SIGTERM, in all")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one-killed", type=int, help="instead: kill one of torchrun's two ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a mini-GQA of 40 images; made if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="torture") as temporary:
        data = arguments.data or Path(temporary) / "mini_gqa"
        if not data.exists():
            make_mini_gqa(data, images=IMAGES)
        if arguments.one_killed:
            given = [*OPTIONS, f"datasets.gqa_fusion.mini_gqa.root={data}"]
            folder = Path(temporary)
            raise SystemExit(
                min(1, one_killed(arguments.one_killed, given, folder, arguments.seed))
            )
        share = len(arguments.processes)
        for place, processes in enumerate(arguments.processes):
            folder = Path(temporary) / f"{processes}_processes"
            folder.mkdir()
            series = Series(folder, data, processes, arguments.seed)
            series.torture(
                *((count + place) // share for count in (arguments.kills, arguments.terms))
            )
            print(
                f"{processes} process(es): "
                + ", ".join(f"{count} {what}" for what, count in series.counts.items())
                + f"; {series.counts['unreadable states']} unreadable; from SIGTERM to the end at "
                f"most {series.slowest_save:.1f} s, from SIGKILL {series.slowest_end:.1f} s; "
                f"{len(series.faults)} faults",
                flush=True,
            )
            for fault in series.faults:
                print(f"  {fault}", flush=True)
            faults += len(series.faults)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
