"""`torture.py --one-killed`: kill one of two processes under torchrun, and check that the job ends.

The moments alternate: while the processes start, load data, compute, validate or save a state.
"""

import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.launching import torchrun_command

MOMENTS = ("starting", "loading", "computing", "validating", "saving")
MARK = "LAVIS_EXT_TORTURED"
MOST_SECONDS = 60.0
VAL_EVERY = 7


def marked(mark: str) -> dict[int, str]:
    """Command lines of processes with ``mark`` in their environment, by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                command = (process / "cmdline").read_text().replace("\0", " ")
                found[int(process.name)] = command
    return found


def one_killed(count: int, options: list[str], folder: Path, seed: int) -> int:
    """Kill one rank at ``count`` moments and print the results. Returns the number of failures."""
    chance = random.Random(f"{seed} one killed")
    faults, slowest = 0, 0.0
    for place in range(count):
        moment = MOMENTS[place % len(MOMENTS)]
        rank = place % 2
        name = f"killed{place}"
        code, seconds, left = _killed(moment, rank, options, folder / name, chance)
        wrong = code == 0 or bool(left) or seconds > MOST_SECONDS
        faults += wrong
        slowest = max(slowest, seconds)
        print(
            f"rank {rank} killed while {moment}: exit code {code}, the job gone after "
            f"{seconds:.1f} s, {len(left)} processes left{' (WRONG)' if wrong else ''}",
            flush=True,
        )
        for pid, command in left.items():
            print(f"  {pid} {command[:120]}", flush=True)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    print(f"{count} kills of one of two: at most {slowest:.1f} s, {faults} faults", flush=True)
    return faults


def _killed(
    moment: str, rank: int, options: list[str], folder: Path, chance: random.Random
) -> tuple[int, float, dict[int, str]]:
    """torchrun's exit code, seconds from the kill to the job's end, and remaining processes."""
    mark = secrets.token_hex(8)
    given = [f"run.name={folder.name}", f"run.output_dir={folder.parent}", "run.resume=null"]
    given += [f"run.val_every_steps={VAL_EVERY}", "run.save_every_steps=2", "run.num_workers=1"]
    given += ["run.batch_size_train=8", "run.max_steps=9999", "run.max_epoch=9999"]
    program = ["train.py", "--cfg-path", "projects/pnp-vqa/train/gqa_small.yaml"]
    with (folder.parent / f"{folder.name}.txt").open("w") as out:
        job = subprocess.Popen(
            torchrun_command(2, *program, "--options", *options, *given),
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", MARK: mark},
            stdout=out,
            stderr=out,
        )
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 4 * MOST_SECONDS
        while not condition():
            if job.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"it did not come to {moment}: see {folder}.txt")
            time.sleep(0.001)

    log = folder / "log.jsonl"
    wait_for(lambda: len(children.read_text().split()) >= 2)
    ranks = [int(pid) for pid in children.read_text().split()]
    if moment == "starting":
        time.sleep(chance.uniform(0, 12))
    else:
        steps = chance.randrange(1, 12)
        wait_for(lambda: log.exists() and log.read_text().count('"train"') >= steps)
        if moment == "validating":
            last = f'"step": {VAL_EVERY * (steps // VAL_EVERY + 1)},'
            wait_for(lambda: last in log.read_text())
            time.sleep(chance.uniform(0, 0.2))
        elif moment == "saving":
            wait_for(lambda: any(folder.glob(".state_*")))
        elif moment == "computing":
            time.sleep(chance.uniform(0, 1))
    killed = time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        job.wait(MOST_SECONDS)
    while (left := marked(mark)) and time.monotonic() < killed + MOST_SECONDS:
        time.sleep(0.05)
    seconds = time.monotonic() - killed
    if job.poll() is None:
        job.kill()
    return job.wait(), seconds, left
