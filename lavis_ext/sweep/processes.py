"""Training processes of a sweep: started, stopped with it, and their output kept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import torch

import lavis_ext
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.sweep import guardian

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS_A_LOOK = 0.1
TAIL = 2**16
"""Bytes of a run's output in which its last error is looked for."""
GUARDED = [sys.executable, "-Sc", "import runpy, sys; runpy.run_path(sys.argv[1])['main']()"]
"""Runs ``guardian.py``, which isn't imported as part of the package."""


@dataclass(frozen=True)
class Job:
    """A run's processes.

    Attributes:
        name: name of the run.
        options: ``KEY=VALUE`` for train.py.
        output: file that the processes' output is appended to.
    """

    name: str
    options: Sequence[str]
    output: Path


class Workers:
    """Context manager that runs jobs, at most ``at_once`` at a time.

    The first SIGTERM, SIGINT or SIGHUP starts no more jobs and passes SIGTERM on, so that runs save
    their states and end; so does a second one, which ends a run at once.

    Args:
        cfg_path: the runs' config.
        at_once: number of jobs at a time.
        processes: processes a job, started by torchrun; None for a single one without it.

    Attributes:
        received: number of the first signal; 0 before it.
    """

    def __init__(self, cfg_path: str, at_once: int, processes: int | None) -> None:
        self.received = 0
        self._command = [*_launcher(processes), str(train_program()), "--cfg-path", cfg_path]
        self._places = _environments(at_once, processes or 1)
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Self:
        self._pipe = os.pipe()
        # A sweep under nohup goes on after SIGHUP.
        heeded = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        self._before = {signum: signal.signal(signum, self._stop) for signum in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        left = [process for _job, process in self._running.values()]
        for process in left:  # after an error of the sweep itself
            process.terminate()
        for process in left:
            process.wait()
        for descriptor in self._pipe:
            os.close(descriptor)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def run(
        self,
        jobs: Iterator[Job],
        started: Callable[[Job], None],
        ended: Callable[[Job, int, float], None],
    ) -> None:
        """Run all jobs, or until a signal.

        ``ended`` is called with the exit code, negative for a signal, and the seconds taken.
        """
        begun: dict[int, float] = {}
        left = True
        while left or self._running:
            for place in range(len(self._places)):
                if not left or self.received or place in self._running:
                    continue
                new = next(jobs, None)
                left = new is not None
                if new is not None:
                    begun[place] = time.monotonic()
                    started(new)
                    self._start(place, new)
            left = left and not self.received
            for place, (job, process) in list(self._running.items()):
                code = process.poll()
                if code is not None:
                    del self._running[place]
                    ended(job, code, time.monotonic() - begun[place])
            if self._running:
                time.sleep(SECONDS_A_LOOK)

    def _start(self, place: int, job: Job) -> None:
        command = [*self._command, "--options", *job.options]
        guarded = [*GUARDED, guardian.__file__, str(self._pipe[0]), *command]
        with job.output.open("ab") as output:
            process = subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._places[place]},
                pass_fds=[self._pipe[0]],
                # Signals of the terminal reach the runs through the sweep, and only once.
                start_new_session=True,
            )
        self._running[place] = job, process
        if self.received:  # between the last look and the start
            process.terminate()

    def _stop(self, signum: int, frame: object) -> None:
        # Passed on at once: if a run got the same signal by itself, it takes this one as its echo.
        for _, process in self._running.values():
            process.terminate()
        if not self.received:
            self.received = signum
            print(
                f"{signal.Signals(signum).name}: runs save their states and end; a second signal "
                "ends them immediately",
                flush=True,
            )


def train_program() -> Path:
    """Path of train.py: beside the package, or in the working directory."""
    for folder in (Path(lavis_ext.__file__).parents[1], Path.cwd()):
        if (folder / "train.py").is_file():
            return folder / "train.py"
    raise UserError(
        "train.py is neither beside the package lavis_ext nor in this folder; start the sweep in "
        "the project's folder."
    )


def last_error(output: Path) -> str:
    """The last line of a run's output that tells of an error, or its last line."""
    try:
        with output.open("rb") as file:
            _to_tail(file)
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return shortened([*lines, *errors][-1], 200) if lines else ""


def _to_tail(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))


def _launcher(processes: int | None) -> list[str]:
    if processes is None:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *torchrun]


def _environments(at_once: int, processes: int) -> list[dict[str, str]]:
    """Environment variables of each place, which share out GPUs and cores."""
    shared: dict[str, str] = {}
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        shared["OMP_NUM_THREADS"] = str(max(1, (cores or 1) // (at_once * processes)))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
    groups = [gpus[n : n + processes] for n in range(0, len(gpus) - processes + 1, processes)]
    if not groups:
        return [shared] * at_once
    return [
        {**shared, "CUDA_VISIBLE_DEVICES": ",".join(groups[place % len(groups)])}
        for place in range(at_once)
    ]
