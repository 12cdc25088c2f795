"""List the functions of ``lavis_ext`` that a question passes on its way from JSON to a loss.

    python -m benchmarks.one_question
    python -m benchmarks.one_question --project OTHER_CHECKOUT

``train.py`` trains the miniature for two steps of one question each, on a mini-GQA of ten images,
under ``sys.setprofile``. Two stretches count: the task's ``build_datasets``, which reads the JSON,
and the loop from the end of the first step to the second step's ``backward``. Each function is
listed once, where it is first entered; lambdas and comprehensions belong to the function around
them. Only the contract of LAVIS's tasks and torch's names are relied on, so that revisions can be
compared.
"""

import argparse
import contextlib
import io
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
    "run.questions_per_image=1",
    "run.valid_splits=[]",
    "run.test_splits=[]",
    "run.val_every_steps=null",
    "run.num_workers=0",
    "run.log_freq=1000",
    "run.device=cpu",
)
READING, TRAINING = "from JSON to the data set", "from one step to the next step's loss"


@dataclass
class Way:
    """What has been passed so far; a profile function for ``sys.setprofile``.

    Attributes:
        package: the folder whose functions count.
        passed: functions by stretch, in order, as file and qualified name.
    """

    package: Path
    passed: dict[str, dict[tuple[str, str], None]] = field(
        default_factory=lambda: {READING: {}, TRAINING: {}}
    )
    _builder: FrameType | None = None
    _losses: int = 0
    _stepped: bool = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note an event of the interpreter."""
        code = frame.f_code
        if event == "return":
            if frame is self._builder:
                self._builder = None
            elif code.co_name == "step" and _is_of_torch(code, "optim"):
                self._stepped = True
        elif event == "call":
            if code.co_name == "backward" and _is_of_torch(code, "_tensor.py"):
                self._losses += 1
            elif code.co_filename.startswith(f"{self.package}{os.sep}"):
                if code.co_name == "build_datasets" and self._builder is None:
                    self._builder = frame
                self._note(code)

    def _note(self, code: CodeType) -> None:
        if code.co_name.startswith("<"):
            return
        place = str(Path(code.co_filename).relative_to(self.package.parent)), code.co_qualname
        if self._builder is not None:
            self.passed[READING].setdefault(place)
        elif self._stepped and self._losses == 1:
            self.passed[TRAINING].setdefault(place)


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
    way = Way(project / "lavis_ext")
    with contextlib.redirect_stdout(io.StringIO()):
        sys.setprofile(way)
        try:
            runpy.run_path("train.py", run_name="__main__")
        finally:
            sys.setprofile(None)
    return way


def listing(way: Way) -> str:
    """Each stretch's functions in order, then how many functions and files there are."""
    lines: list[str] = []
    for stretch, places in way.passed.items():
        lines.append(f"{stretch}: {_counts(list(places))}")
        lines += [f"  {path}  {name}" for path, name in places]
    both = [place for places in way.passed.values() for place in places]
    lines.append(f"in all: {_counts(both)}")
    return "\n".join(lines)


def _counts(places: Sequence[tuple[str, str]]) -> str:
    files = {path for path, _ in places}
    return f"{len(set(places))} functions in {len(files)} files"


def main() -> None:
    """Follow one question, and print its way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--project", type=Path, default=PROJECT, help="the checkout (this one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        way = follow(given.project.resolve(), Path(folder))
    print(listing(way))


if __name__ == "__main__":
    main()
