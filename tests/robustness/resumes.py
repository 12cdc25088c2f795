"""Resume an interrupted run of two processes many times, and look for stalls.

    python -m tests.robustness.resumes --count 200

A tiny run with loader workers is interrupted by SIGINT once. Each resume continues a copy of it to
the end of its last evaluation, with workers forked anew for every validation. A pause of more than
``STALL_SECONDS`` between two lines of its log is a stall, and must be explained in its messages.
"""

import argparse
import itertools
import json
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch

from lavis_ext.datasets.mini_gqa import make_mini_gqa
from tests.robustness.torture_jobs import IMAGES, OPTIONS, Job

STEPS = 5
INTERRUPTED_AT = 3
STALL_SECONDS = 10.0
MOST_SECONDS = 900.0
"""A hanging job; the number of other programs decides how long a resume takes."""
EXPLAINED = "loader workers that bring nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description="Resume a run many times and look for stalls.")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--data", type=Path, help="a mini-GQA of 40 images; made if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="resumes") as temporary:
        folder = Path(temporary)
        data = arguments.data or folder / "mini_gqa"
        if not data.exists():
            make_mini_gqa(data, images=IMAGES)
        _interrupted(data, folder)
        faults, explained, longest = [], 0, 0.0
        for place in range(arguments.count):
            pause, said, codes = _resumed(data, folder, f"resumed{place}")
            longest = max(longest, pause)
            explained += EXPLAINED in said
            if codes != [0, 0]:
                faults.append(f"resume {place} ended with {codes}:\n{said[-3000:]}")
            elif pause > STALL_SECONDS and EXPLAINED not in said:
                faults.append(f"resume {place} stalled for {pause:.0f} s:\n{said[-3000:]}")
            elif EXPLAINED in said:
                print(said[said.index(EXPLAINED) :][:3000], flush=True)
            if (place + 1) % 10 == 0:
                print(
                    f"{place + 1} resumes, {len(faults)} faults, {explained} replaced workers, "
                    f"at most {longest:.1f} s without a line",
                    flush=True,
                )
    print(
        f"{arguments.count} resumes of two processes with loader workers: {len(faults)} faults, "
        f"{explained} replaced workers, at most {longest:.1f} s between two lines of a log"
    )
    for fault in faults:
        print(fault)
    raise SystemExit(1 if faults else 0)


def _start(data: Path, folder: Path, name: str) -> Job:
    options = [
        *OPTIONS,
        f"run.name={name}",
        f"run.output_dir={folder}",
        f"run.max_steps={STEPS}",
        "run.val_every_steps=2",
        "run.batch_size_train=8",
        "run.num_workers=2",
        f"datasets.gqa_fusion.mini_gqa.root={data}",
    ]
    return Job(options, 2, folder / f"{name}.txt")


def _interrupted(data: Path, folder: Path) -> None:
    """Leave an interrupted run in ``folder / "interrupted"``."""
    job = _start(data, folder, "interrupted")
    job.wait_until(
        lambda: len(_times(folder / "interrupted")) >= INTERRUPTED_AT, MOST_SECONDS, 0.01
    )
    job.send(signal.SIGINT, job.pids)
    codes = job.end(MOST_SECONDS)
    if codes != [130, 130]:
        raise SystemExit(f"the run wasn't interrupted, but ended with {codes}")


def _resumed(data: Path, folder: Path, name: str) -> tuple[float, str, list[int]]:
    """Resume a copy; returns the longest pause in seconds, its messages and exit codes."""
    shutil.copytree(folder / "interrupted", folder / name)
    before = len(_times(folder / name))
    job = _start(data, folder, name)
    codes = job.end(MOST_SECONDS)
    times = [*_times(folder / name)[before:], time.time()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    messages = folder / f"{name}.txt"
    said = messages.read_text(errors="replace")
    shutil.rmtree(folder / name)
    messages.unlink()
    return max(pauses, default=0.0), said, codes


def _times(folder: Path) -> list[float]:
    """Times of a run's log lines in seconds."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["time"] for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
