"""Kill training runs, damage their states, fill their disk, stall them, and resume them.

    make torture N=200
    python -m tests.robustness.torture --kills 50 --terms 20 --corrupts 10 --stalls 10 --seed 0
    python -m tests.robustness.torture --one-killed 10

Each series trains a tiny model on mini-GQA once without faults, then repeatedly with faults at
random moments (``torture_faults.py``). After each failure every state must be readable; at the end
of each run weights, optimizer, losses and metrics must equal the undisturbed run's, bit for bit.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from lavis_ext.datasets.mini_gqa import make_mini_gqa
from tests.robustness.torture_faults import FAULTS, LEFT_OUT, Life, check_states, log_size, newest
from tests.robustness.torture_jobs import IMAGES, OPTIONS, Job, differences, left_by
from tests.robustness.torture_one_killed import one_killed


class Series:
    """Runs with one number of processes.

    Attributes:
        counts: counts of events.
        slowest: maximum seconds from a signal to the end, by signal name.
        faults: violations found.
    """

    def __init__(self, folder: Path, data: Path, processes: int, seed: int) -> None:
        self._folder, self._data, self._processes = folder, data, processes
        self._random = random.Random(f"{seed} {processes}")
        self.counts: Counter[str] = Counter()
        self.slowest = {"SIGTERM": 0.0, "SIGKILL": 0.0}
        self.faults: list[str] = []
        started = time.monotonic()
        self._start("undisturbed", 9, workers=0).end()
        self._whole = time.monotonic() - started
        self._expected = left_by(folder / "undisturbed")

    def torture(self, wanted: dict[str, int]) -> None:
        """Run until the ``wanted`` number of faults of each kind has happened."""
        while any(self.counts[kind] < wanted[kind] for kind in wanted):
            name = f"run{self.counts['runs']}"
            self.counts["runs"] += 1
            saves = self._random.choice((1, 3, 8))
            damaged: list[tuple[Path, int]] = []
            while True:
                open_kinds = [kind for kind in wanted if self.counts[kind] < wanted[kind]]
                kind = self._random.choice(open_kinds) if open_kinds else None
                codes = self._live(name, saves, kind, damaged)
                if codes == [0] * self._processes:
                    break
                if kind is None:
                    said = self._messages(name).read_text()[-3000:]
                    self.faults.append(f"{name}: ended with {codes}:\n{said}")
                    return
            self._compare(name, len(damaged))

    def _live(
        self, name: str, saves: int, kind: str | None, damaged: list[tuple[Path, int]]
    ) -> list[int]:
        """Start or resume a run with a fault; returns its exit codes."""
        folder = self._folder / name
        before = log_size(folder), newest(folder)
        # Loader workers also pass data through files.
        workers = 0 if kind == "fills" else self._random.choice((0, 1))
        job = self._start(name, saves, workers)
        life = Life(
            *(job, folder, self._whole, self._random, self.counts, self.slowest, self.faults),
            *(damaged, *before),
        )
        if kind is not None and FAULTS[kind](life):
            self.counts[kind] += 1
        codes = job.end()
        check_states(life)
        return codes

    def _compare(self, name: str, damaged: int) -> None:
        if found := differences(self._expected, left_by(self._folder / name)):
            self.faults.append(f"{name}: other {', '.join(found[:9])}")
        if self._messages(name).read_text().count(LEFT_OUT) < damaged:
            self.faults.append(f"{name}: a damaged state was left out without a warning")

    def _start(self, name: str, saves: int, workers: int) -> Job:
        options = [
            *OPTIONS,
            f"run.name={name}",
            f"run.output_dir={self._folder}",
            f"run.save_every_steps={saves}",
            f"run.batch_size_train={16 // self._processes}",
            f"run.num_workers={workers}",
            f"datasets.gqa_fusion.mini_gqa.root={self._data}",
        ]
        return Job(options, self._processes, self._messages(name))

    def _messages(self, name: str) -> Path:
        return self._folder / f"{name}.txt"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Interrupt training runs and compare their results."
    )
    for kind, fault in FAULTS.items():
        summary = (fault.__doc__ or "").splitlines()[0]
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=summary)
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
            wanted = {kind: (getattr(arguments, kind) + place) // share for kind in FAULTS}
            series.torture(wanted)
            print(
                f"{processes} process(es): "
                + ", ".join(f"{count} {what}" for what, count in series.counts.items())
                + f"; {series.counts['unreadable states']} unreadable; from SIGTERM to the end at "
                f"most {series.slowest['SIGTERM']:.1f} s, from SIGKILL "
                f"{series.slowest['SIGKILL']:.1f} s; "
                f"{len(series.faults)} faults",
                flush=True,
            )
            for fault in series.faults:
                print(f"  {fault}", flush=True)
            faults += len(series.faults)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
