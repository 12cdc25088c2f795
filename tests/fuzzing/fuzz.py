"""Fuzz the readers of untrusted files: questions of all formats, configs, weights and names.

    python -m tests.fuzzing.fuzz questions --seconds 600 --seed 0
    python -m tests.fuzzing.fuzz --seconds 600          # one target after the other

Hypothesis draws a valid file and mutations: flipped, deleted, copied and spliced bytes, and
exchanged, duplicated, nested and renamed values; some files come from a grammar. Reading must end
with a valid result or a UserError, within ``SECONDS_AN_EXAMPLE`` and ``BYTES_MORE`` of memory, and
leave no file behind. Hypothesis minimizes examples that don't, and their files are kept.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from lavis_ext.common.errors import UserError
from tests.fuzzing.fuzz_configs import configs, read_config
from tests.fuzzing.fuzz_names import names, read_names
from tests.fuzzing.fuzz_questions import questions, read_question_files
from tests.fuzzing.fuzz_vqa import read_vqa_files, vqa_questions
from tests.fuzzing.fuzz_weights import read_weights, weights

SECONDS_AN_EXAMPLE = 30.0
BYTES_MORE = 6 * 2**30
"""Additional address space after the start of fuzzing; torch uses most of it."""
EXAMPLES_A_ROUND = 400
LONGEST_MESSAGE = 1500
"""Maximum length of a message in characters, including paths and keys."""

Files: TypeAlias = Mapping[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader to fuzz.

    Attributes:
        cases: strategy for the arguments of ``read``; the first are files.
        read: reads the files in a given folder, and checks the result.
    """

    cases: SearchStrategy[tuple[Files, Any]]
    read: Callable[[Path, Any], None]


TARGETS = {
    "questions": Target(questions(), read_question_files),
    "vqa": Target(vqa_questions(), read_vqa_files),
    "configs": Target(configs(), read_config),
    "weights": Target(weights(), read_weights),
    "names": Target(names(), read_names),
}


class Hang(BaseException):
    """Timeout of an example, which ``except Exception`` must not catch."""


class Left(AssertionError):
    """Raised if reading left or changed files."""


class Unclear(AssertionError):
    """Raised for an empty or overlong error message."""


@dataclass
class Tally:
    """Results of the examples.

    Attributes:
        accepted: number of accepted examples.
        refusals: counts of error messages, without the examples' values.
        faults: counts of violations by place in the code.
        slowest: seconds of the slowest example.
    """

    accepted: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def examples(self) -> int:
        return self.accepted + self.refusals.total() + self.faults.total()

    def __str__(self) -> str:
        share = self.accepted / max(self.examples, 1)
        return (
            f"{self.examples:,} examples: {self.accepted:,} accepted ({share:.0%}), "
            f"{self.refusals.total():,} refused in {len(self.refusals)} ways, "
            f"{self.faults.total():,} broke the rule in {len(self.faults)} ways; "
            f"the slowest took {self.slowest:.2f} s"
        )


def fuzz(target: Target, seed: int, seconds: float, out: Path, most: int = 10**9) -> Tally:
    """Try up to ``most`` examples within ``seconds``; faults are saved in ``out``."""
    tally = Tally()
    ends = time.monotonic() + seconds
    number = 0
    while time.monotonic() < ends and tally.examples < most:
        one_round = given(target.cases)(lambda case: _try(target, case, tally, out, ends))
        one_round = settings(
            max_examples=min(EXAMPLES_A_ROUND, most),
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )(one_round)
        try:
            hypothesis.seed(f"{seed}.{number}")(one_round)()
        except _Fault as fault:
            tally.faults[fault.where] += 1
        except Flaky as flaky:  # a timeout that didn't repeat
            tally.faults[str(flaky).splitlines()[0]] += 1
        number += 1
    return tally


class _Fault(Exception):
    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


def _try(target: Target, case: tuple[Files, Any], tally: Tally, out: Path, ends: float) -> None:
    if time.monotonic() >= ends:
        return
    # If the interpreter crashes, its files are left here.
    folder = Path(tempfile.mkdtemp(prefix="example-", dir=out))
    try:
        _read(target, case, tally, folder, out)
    finally:
        shutil.rmtree(folder)


def _read(target: Target, case: tuple[Files, Any], tally: Tally, folder: Path, out: Path) -> None:
    files, how = case
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    before = _contents(folder)
    started = time.perf_counter()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder, how)
    except UserError as error:
        message = str(error)
        if not 0 < len(message.strip()) < LONGEST_MESSAGE:
            _keep(Unclear(message).with_traceback(error.__traceback__), folder, out, how, tally)
        tally.refusals[_kind(message, folder)] += 1
    except (Exception, Hang, SystemExit) as error:
        _keep(error, folder, out, how, tally)
    else:
        tally.accepted += 1
    tally.slowest = max(tally.slowest, time.perf_counter() - started)
    if (after := _contents(folder)) != before:
        changed = sorted(before.items() ^ after.items())
        _keep(Left(f"{changed[0][0]} was left or changed"), folder, out, how, tally)


def _keep(error: BaseException, folder: Path, out: Path, how: Any, tally: Tally) -> None:
    """Keep the files of a new fault; Hypothesis then minimizes them."""
    where = f"{type(error).__name__} in {_place(error)}"
    if where in tally.faults:
        tally.faults[where] += 1
        return
    kept = out / where.replace("/", ".").replace(" ", "_")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept / "files")
    trace = "".join(traceback.format_exception(error))
    (kept / "fault.txt").write_text(f"{how!r}\n\n{trace}", encoding="utf-8", errors="replace")
    raise _Fault(where) from None


def _place(error: BaseException) -> str:
    """The line of an error in this library, or in the check of its result."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "lavis_ext" in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "the folder"


def _kind(message: str, folder: Path) -> str:
    """A message without the example's values, to count distinct messages."""
    words = message.replace(str(folder), "").split()
    return " ".join(word for word in words if word.isalpha() and word.isascii())[:60]


def _contents(folder: Path) -> dict[str, int]:
    """Names and sizes of files; locks and stores may remain."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((".lock", ".lock.progress", ".arrow"))
    }


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Hang(f"longer than {SECONDS_AN_EXAMPLE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_AN_EXAMPLE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Limit additional memory mappings of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + BYTES_MORE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for what is found (a temporary one)")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    out = arguments.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    faults = 0
    for name in arguments.targets or TARGETS:
        (out / name).mkdir(parents=True, exist_ok=True)
        random.seed(arguments.seed)
        limit_memory()
        tally = fuzz(TARGETS[name], arguments.seed, arguments.seconds, out / name)
        print(f"{name}: {tally}", flush=True)
        for where, count in tally.faults.most_common():
            print(f"  {count:6,} x {where}")
        for message, count in tally.refusals.most_common(5):
            print(f"  {count:6,} x refused: {message}")
        faults += tally.faults.total()
    print(f"{'faults are in' if faults else 'no faults;'} {out}", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
