"""List the functions of ``lavis_ext`` called for a question on the way from JSON to a loss.

    python -m benchmarks.one_question
    python -m benchmarks.one_question --project OTHER_CHECKOUT

``train.py`` trains the miniature for two steps of one question each, on a mini-GQA of ten images,
under ``sys.setprofile``. Two stretches count: the task's ``build_datasets``, which reads the JSON,
and the loop from the end of the first step to the second step's ``backward``. Each function is
listed once, at its first call; lambdas and comprehensions are left out. A star marks those that
receive or return a question (its text or id, also nested). Only the interface of LAVIS's tasks and
torch's names are relied on, so that revisions can be compared.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks.processes import PROJECT, environment

RECIPE = "projects/pnp-vqa/train/mini_train.yaml"
OPTIONS = (
    "datasets.gqa_fusion.mini_gqa.images=10",
    "run.max_steps=2",
    "run.batch_size_train=1",
    "run.examples_per_image=1",
    "run.valid_splits=[]",
    "run.test_splits=[]",
    "run.val_every_steps=null",
    "run.num_workers=0",
    "run.log_freq=1000",
    "run.device=cpu",
)
Place = tuple[str, str]
READING, TRAINING = "from JSON to the data set", "from one step to the next step's loss"


@dataclass
class Way:
    """A profile function for ``sys.setprofile`` that records the functions passed.

    Attributes:
        package: folder whose functions count.
        texts: texts and ids of the questions.
        passed: called functions by stretch, in order, as file and qualified name.
        handed: functions that receive or return a question.
    """

    package: Path
    texts: frozenset[str]
    passed: dict[str, dict[Place, None]] = field(
        default_factory=lambda: {READING: {}, TRAINING: {}}
    )
    handed: set[Place] = field(default_factory=set)
    _builder: FrameType | None = None
    _losses: int = 0
    _stepped: bool = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record an event of the interpreter."""
        code = frame.f_code
        ours = code.co_filename.startswith(f"{self.package}{os.sep}")
        if event == "return":
            if ours:
                self._note(code, [argument])
            if frame is self._builder:
                self._builder = None
            elif code.co_name == "step" and _is_of_torch(code, "optim"):
                self._stepped = True
        elif event == "call":
            if code.co_name == "backward" and _is_of_torch(code, "_tensor.py"):
                self._losses += 1
            elif ours:
                if code.co_name == "build_datasets" and self._builder is None:
                    self._builder = frame
                names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
                values = frame.f_locals
                self._note(code, [values[n] for n in names if n in values and n != "self"])

    def _note(self, code: CodeType, values: Sequence[Any]) -> None:
        if self._builder is not None:
            stretch = READING
        elif self._stepped and self._losses == 1:
            stretch = TRAINING
        else:
            return
        if code.co_name.startswith("<"):
            return
        place = str(Path(code.co_filename).relative_to(self.package.parent)), code.co_qualname
        self.passed[stretch].setdefault(place)
        if place not in self.handed and any(self._carries(value) for value in values):
            self.handed.add(place)

    def _carries(self, value: Any, levels: int = 4) -> bool:
        """Whether ``value`` or its parts contain a question's text or id."""
        if isinstance(value, str):
            return value in self.texts
        if not levels:
            return False
        if isinstance(value, bytes | bytearray):
            return b'"question"' in value
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            parts = value.values()
        elif isinstance(value, list | tuple):
            parts = value
        elif type(value).__module__.startswith("lavis_ext.") and not hasattr(value, "parameters"):
            parts = getattr(value, "__dict__", {}).values()
        return any(self._carries(each, levels - 1) for each in tuple(parts))


def _is_of_torch(code: CodeType, part: str) -> bool:
    return f"{os.sep}torch{os.sep}{part}" in code.co_filename


def follow(project: Path, folder: Path) -> Way:
    """Train in ``project``, with data and output in ``folder``."""
    data = folder / "data"
    subprocess.run(
        [sys.executable, "-m", "lavis_ext.datasets.mini_gqa", str(data), "--images", "10"],
        cwd=project,
        env=environment(threads=1) | {"PYTHONPATH": str(project)},
        check=True,
        capture_output=True,
    )
    options = [
        *OPTIONS,
        f"datasets.gqa_fusion.mini_gqa.root={data}",
        f"run.output_dir={folder / 'output'}",
    ]
    os.chdir(project)
    sys.path.insert(0, str(project))
    sys.argv = ["train.py", "--cfg-path", RECIPE, "--options", *options]
    way = Way(project / "lavis_ext", frozenset(_texts(data / "questions")))
    with contextlib.redirect_stdout(io.StringIO()):
        sys.setprofile(way)
        try:
            runpy.run_path("train.py", run_name="__main__")
        finally:
            sys.setprofile(None)
    return way


def _texts(folder: Path) -> Iterator[str]:
    """Raw and processed texts, and ids, of all questions."""
    for path in folder.glob("*.json"):
        for name, record in json.loads(path.read_text(encoding="utf-8")).items():
            yield from (name, record["question"], record["question"].lower())


def listing(way: Way) -> str:
    """Each stretch's functions in order, then the numbers of functions and files."""
    lines: list[str] = []
    for stretch, places in way.passed.items():
        lines.append(f"{stretch}: {_counts(places, way)}")
        lines += [f"{'*' if place in way.handed else ' '} {'  '.join(place)}" for place in places]
    both = {place for places in way.passed.values() for place in places}
    lines.append(f"in all: {_counts(both, way)}")
    return "\n".join(lines)


def _counts(places: Iterable[Place], way: Way) -> str:
    every = set(places)
    counts = [
        f"{len(some)} functions in {len({path for path, _ in some})} files"
        for some in (every, every & way.handed)
    ]
    return f"{counts[0]}, of which {counts[1]} receive a question"


def main() -> None:
    """Trace one question and print the called functions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--project", type=Path, default=PROJECT, help="the checkout (this one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        way = follow(given.project.resolve(), Path(folder))
    print(listing(way))


if __name__ == "__main__":
    main()
