"""Faults that ``torture.py`` injects; each function returns whether the fault happened.

A run may end before the fault; then it didn't happen.
"""

import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lavis_ext.runners.state import DamagedState, RunState, state_paths
from tests.robustness.torture_jobs import MOST_SECONDS, Job

FULL = (0, 2_000, 100_000)
"""File size limits of a full disk: no file grows; logs grow; all but tensors grow."""
STALL_SECONDS = 2.0
LEFT_OUT = "Falling back to the previous state."


@dataclass
class Life:
    """One start of a run, with observations.

    Attributes:
        job: processes of the run.
        folder: folder of the run.
        whole: duration of an undisturbed run in seconds.
        random: generator of events and moments.
        counts: counts of events.
        slowest: maximum seconds from a signal to the end, by signal name.
        faults: violations found.
        damaged: damaged states of the run with their modification times.
        log_before: size of the run's log at the start.
        newest_before: modification time of the newest state at the start.
    """

    job: Job
    folder: Path
    whole: float
    random: random.Random
    counts: Counter[str]
    slowest: dict[str, float]
    faults: list[str]
    damaged: list[tuple[Path, int]]
    log_before: int
    newest_before: int

    def wait(self, condition: Callable[[], bool], pause: float = 0.001) -> None:
        self.job.wait_until(condition, MOST_SECONDS, pause)

    def wait_some(self, share: float) -> None:
        """Wait for a random time, up to ``share`` of an undisturbed run's."""
        seconds = self.random.uniform(0, share * self.whole)
        self.job.wait_until(lambda: False, seconds, 0.001)

    def wait_for_training(self) -> None:
        self.wait(lambda: log_size(self.folder) > self.log_before)

    def saving(self) -> bool:
        """Whether a temporary file is being written."""
        return any(self.folder.glob(".state_*")) or any(self.folder.glob(".tmp*"))

    def ended(self, signum: signal.Signals, sent: float) -> None:
        self.slowest[signum.name] = max(self.slowest[signum.name], time.monotonic() - sent)

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.folder.name}: {text}")


def log_size(folder: Path) -> int:
    path = folder / "log.jsonl"
    return path.stat().st_size if path.exists() else 0


def newest(folder: Path) -> int:
    """Modification time of the newest state in nanoseconds; 0 if there is none."""
    for path in state_paths(folder):
        with suppress(FileNotFoundError):
            return path.stat().st_mtime_ns
    return 0


def kill(life: Life) -> bool:
    """SIGKILL to one process or all, at any time or while a state is being written."""
    job = life.job
    # Temporary files of an earlier failure are removed when the run resumes.
    life.wait(lambda: not life.saving())
    life.wait_some(1.0)
    if life.random.random() < 0.5:
        life.wait(life.saving, pause=0)
    if not job.running:
        return False
    pids = life.random.choice([job.pids, [life.random.choice(job.pids)]])
    dead = [pid for pid in pids if pid not in job.codes]
    sent = time.monotonic()
    job.send(signal.SIGKILL, dead)
    if 0 in job.end_with(dead):
        return False
    life.ended(signal.SIGKILL, sent)
    life.counts["kills while saving"] += life.saving()
    life.counts["kills of one of several"] += len(pids) < len(job.pids)
    return True


def terminate(life: Life) -> bool:
    """SIGTERM to one process or all during training."""
    job = life.job
    life.wait_for_training()
    life.wait_some(0.3)
    if not job.running:
        return False
    sent = time.monotonic()
    job.send(signal.SIGTERM, life.random.choice([job.pids, [life.random.choice(job.pids)]]))
    codes = job.end()
    if not any(codes):
        return False
    life.ended(signal.SIGTERM, sent)
    if codes != [143] * len(codes):
        life.fault(f"SIGTERM ended it with {codes}")
    trained = [json.loads(line) for line in (life.folder / "log.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in trained if line["kind"] == "train")
    life.counts["steps lost to SIGTERM"] += last - RunState.load(state_paths(life.folder)[0]).step
    return True


def corrupt(life: Life) -> bool:
    """SIGKILL to all, then damage to the newest of two states: truncated, altered or emptied."""
    job = life.job

    def two() -> bool:
        return len(state_paths(life.folder)) > 1 and newest(life.folder) != life.newest_before

    life.wait(two)
    life.wait_some(0.3)
    if not job.running:
        return False
    job.send(signal.SIGKILL, job.alive)
    if 0 in job.end() or not two():
        return False
    check_states(life)
    path = state_paths(life.folder)[0]
    content = bytearray(path.read_bytes())
    for place in life.random.choices(range(len(content)), k=3):
        content[place] ^= 1 << life.random.randrange(8)
    cut = bytes(content[: life.random.randrange(1, len(content))])
    path.write_bytes(life.random.choice([bytes(content), cut, b""]))
    life.damaged.append((path, path.stat().st_mtime_ns))
    return True


def fill(life: Life) -> bool:
    """Temporarily limit file sizes; the processes have no loader workers.

    The kernel rejects writes as on a full disk. States stay unchanged all the time.
    """
    job = life.job
    life.wait_for_training()
    life.wait_some(0.5)
    if not job.running:
        return False
    before = newest(life.folder)
    _limit_files(job, life.random.choice(FULL))
    life.wait_some(0.7)
    if before and not newest(life.folder):
        life.fault("no state is left on a full disk")
    check_states(life)
    _limit_files(job, resource.RLIM_INFINITY)
    codes = job.end()
    if any(codes):
        life.counts["ends on a full disk"] += 1
        if codes != [2] * len(codes):
            life.fault(f"on a full disk the codes were {codes}")
    return True


def stall(life: Life) -> bool:
    """SIGSTOP to a process or loader worker, which is continued after a while."""
    life.wait_some(1.0)
    if not life.job.running:
        return False
    workers = life.job.workers
    pid = life.random.choice(life.random.choice([life.job.alive, workers or life.job.alive]))
    with suppress(ProcessLookupError):  # a worker may have ended
        os.kill(pid, signal.SIGSTOP)
        life.job.wait_until(lambda: False, life.random.uniform(0, STALL_SECONDS), 0.01)
        os.kill(pid, signal.SIGCONT)
        life.counts["stalls of workers"] += pid in workers
        return True
    return False


FAULTS: dict[str, Callable[[Life], bool]] = {
    "kills": kill,
    "terms": terminate,
    "corrupts": corrupt,
    "fills": fill,
    "stalls": stall,
}


def check_states(life: Life) -> None:
    """Check that all undamaged states are readable."""
    for path in state_paths(life.folder):
        if (path, path.stat().st_mtime_ns) in life.damaged:
            continue
        life.counts["states read"] += 1
        try:
            RunState.load(path)
        except DamagedState as error:
            life.counts["unreadable states"] += 1
            life.fault(str(error))


def _limit_files(job: Job, size: int) -> None:
    for pid in job.alive:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
