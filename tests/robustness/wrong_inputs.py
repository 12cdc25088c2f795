"""Wrong inputs, the command that reads each, and its error message.

    python -m tests.robustness.wrong_inputs     # rewrites docs/wrong-inputs.md

A case starts from a valid folder (:func:`sound_folder`), makes one thing wrong and runs a command
with arguments, with the folder as the working directory.
"""

import contextlib
import html
import importlib
import io
import os
import re
import runpy
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

import torch
from omegaconf import OmegaConf

from lavis_ext.common import downloads
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from tests.gqa_rule import write_files
from tests.runners.test_runner import TINY_MODEL

PROJECT = Path(__file__).parents[2]
SMALL = PROJECT / "projects" / "pnp-vqa" / "train" / "gqa_small.yaml"
EVAL = PROJECT / "projects" / "pnp-vqa" / "eval" / "gqa_small_eval.yaml"
DOCUMENT = PROJECT / "docs" / "wrong-inputs.md"
RENEW = "python -m tests.robustness.wrong_inputs"
IMAGES = 40
NOWHERE = "http://127.0.0.1:9"
"""Address without a server."""

INSIDES = ("OmegaConf", "ListConfig", "DictConfig", "AnyNode", "full_key", "NoneType")
"""Words of internals that messages must not contain."""

Damage: TypeAlias = Callable[[], object]
"""Damages a file in the working directory."""


def nothing() -> None:
    """No damage: only the arguments are wrong."""


@dataclass(frozen=True)
class Case:
    """A wrong input.

    Attributes:
        kind: kind of input: a config, a question file, ...
        wrong: the mistake, for the table.
        command: name in ``COMMANDS``.
        arguments: arguments of the command.
        says: required part of its message.
        damage: damages the folder's content.
        begins: whether it is detected after the run's start, so its folder and log are left.
    """

    kind: str
    wrong: str
    command: str
    arguments: Sequence[str]
    says: str = ""
    damage: Damage = nothing
    begins: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.wrong}"


@dataclass(frozen=True)
class Outcome:
    """Result of a command: exit code, both streams, and changes in the folder."""

    code: int | None
    out: str
    err: str
    changed: Sequence[str]

    @property
    def message(self) -> str:
        """Its message after ``error:``."""
        return "".join(re.split("^error: ", self.err, maxsplit=1, flags=re.MULTILINE)[1:]).strip()


# --- commands ------------------------------------------------------------------------------------


def _module(name: str) -> Callable[[], None]:
    return lambda: importlib.import_module(name).main()


def _script(name: str) -> Callable[[], None]:
    return lambda: runpy.run_path(str(PROJECT / f"{name}.py"), run_name="program")["main"]()


COMMANDS: dict[str, tuple[str, Callable[[], None]]] = {
    "train": ("train.py", _script("train")),
    "evaluate": ("evaluate.py", _script("evaluate")),
    "extract": ("-m lavis_ext.features.extract", _module("lavis_ext.features.extract")),
    "gqa": ("-m lavis_ext.evaluation.gqa", _module("lavis_ext.evaluation.gqa.__main__")),
    "compare": ("-m lavis_ext.evaluation.compare", _module("lavis_ext.evaluation.compare")),
    "leaderboard": (
        "-m lavis_ext.evaluation.leaderboard",
        _module("lavis_ext.evaluation.leaderboard"),
    ),
    "report": ("-m lavis_ext.evaluation.report", _module("lavis_ext.evaluation.report.__main__")),
    "ask": ("-m lavis_ext.ask", _module("lavis_ext.ask.command")),
    "export": ("-m lavis_ext.export", _module("lavis_ext.export")),
    "merge": ("-m lavis_ext.models.merge", _module("lavis_ext.models.merge")),
    "download": (
        "-m lavis_ext.datasets.gqa.download",
        _module("lavis_ext.datasets.gqa.download"),
    ),
}
"""A command's arguments to ``python``, and its ``main``."""


def run(case: Case, folder: Path) -> Outcome:
    """Create ``case`` in a valid folder, and run its command in this process."""
    with isolated(folder):
        case.damage()
        before = contents(folder)
        out, err = io.StringIO(), io.StringIO()
        code: int | None = 0
        with (
            patch.object(sys, "argv", [case.command, *case.arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                COMMANDS[case.command][1]()
            except SystemExit as ending:
                code = ending.code if isinstance(ending.code, int) else 1
            except Exception:
                code = None
                traceback.print_exc()
        after = contents(folder)
    changed = sorted({name for name, _ in before.items() ^ after.items()})
    return Outcome(code, out.getvalue(), shown(err.getvalue(), folder), changed)


def shown(text: str, folder: Path) -> str:
    """Text without machine-specific paths, and without hashes that depend on the time."""
    for path, name in ((folder.resolve(), "."), (folder, "."), (PROJECT, "<project>")):
        text = text.replace(str(path), name)
    return re.sub(r"[0-9a-f]{16,64}", "HASH", text)


def faults(case: Case, outcome: Outcome) -> list[str]:
    """Violations of the rules for a command's reaction to a wrong input."""
    found = []
    if outcome.code != 2:
        found.append(f"it ended with code {outcome.code}: {outcome.err[-600:]}")
    if len(re.findall("^error: ", outcome.err, re.MULTILINE)) != 1:
        found.append(f"it doesn't print one error: {outcome.err[-600:]}")
    if "Traceback" in outcome.err + outcome.out:
        found.append("there is a traceback")
    if case.says not in outcome.message:
        found.append(f"it doesn't say '{case.says}' but: {outcome.message}")
    if len(outcome.message.partition("There are:")[0]) > 600 or not re.search(
        r"[.?)]$", outcome.message
    ):
        found.append(f"it isn't one or two sentences: {outcome.message}")
    if insides := [word for word in INSIDES if word in outcome.message]:
        found.append(f"it mentions {', '.join(insides)}: {outcome.message}")
    own = "output/" if case.begins else None
    left = [name for name in outcome.changed if own is None or not name.startswith(own)]
    if left:
        found.append(f"it left or changed {', '.join(left)}")
    if any("/." in name for name in outcome.changed):
        found.append(f"it left a partial file: {', '.join(outcome.changed)}")
    return found


@contextmanager
def isolated(folder: Path) -> Iterator[None]:
    """Context manager: work in ``folder`` with separate caches and no network."""
    from huggingface_hub import constants

    environment = {"TORCH_HOME": str(folder / "torch"), "XDG_CACHE_HOME": str(folder / "cache")}
    with ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(patch.dict(os.environ, environment))
        stack.enter_context(patch.object(constants, "HF_HUB_CACHE", str(folder / "hub")))
        stack.enter_context(patch.object(constants, "ENDPOINT", NOWHERE))
        stack.enter_context(patch.object(downloads, "FIRST_WAIT_SECONDS", 0.0))
        stack.enter_context(patch.object(sys, "path", [*sys.path]))
        stack.enter_context(patch.object(torch.cuda, "is_available", lambda: False))
        yield


def contents(folder: Path) -> dict[str, bytes | None]:
    """Files with their contents, and folders of runs."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file():
            found[name] = path.read_bytes()
        elif path.parent.name == "output":
            found[name] = None
    return found


# --- what is sound -------------------------------------------------------------------------------


def sound_folder(folder: Path) -> None:
    """Create all inputs of commands: configs, data, weights, a run, features, predictions."""
    make_mini_gqa(folder / "gqa", images=IMAGES)
    shutil.copy(SMALL, folder / "small.yaml")
    shutil.copy(EVAL, folder / "eval.yaml")
    options = [
        *TINY_MODEL,
        "datasets.gqa_fusion.root=gqa",
        "datasets.gqa_fusion.mini_gqa=null",
        "run.small_train_size=48",
        "run.batch_size_train=16",
        "run.batch_size_eval=16",
        "run.max_steps=2",
        "run.save_every_steps=1",
        "run.num_workers=0",
        "run.device=cpu",
        "run.report=false",
        "task.resamples=0",
    ]
    merged = OmegaConf.merge(OmegaConf.load(SMALL), OmegaConf.from_dotlist(options))
    (folder / "mine.yaml").write_text(OmegaConf.to_yaml(merged))
    with isolated(folder), contextlib.redirect_stdout(io.StringIO()):
        for name, arguments in (
            ("train", ["--options", "run.name=before"]),
            ("extract", ["--options", *STORED]),
        ):
            with patch.object(sys, "argv", [name, "--cfg-path", "mine.yaml", *arguments]):
                COMMANDS[name][1]()
    shutil.copy(folder / "output" / "before" / BEST, folder / BEST)
    questions, choices = folder / QUESTIONS, folder / "gqa" / "choices" / "val_choices.json"
    write_files(questions, choices, folder)
    shutil.copy(sorted((folder / "gqa" / "images").iterdir())[0], folder / "picture.jpg")
    (folder / "here").mkdir()
    with zipfile.ZipFile(folder / "here" / "images.zip", "w") as archive:
        archive.writestr("images/1.jpg", b"not those of GQA")


BEST = "fusion_encoder_best.safetensors"
QUESTIONS = "gqa/questions/val_all_questions.json"
TRAIN = "gqa/questions/train_balanced_questions.json"
STORED = ["run.trainable=['fusion.*']", "run.features.root=features", "run.features.dtype=fp16"]


# --- the document --------------------------------------------------------------------------------


def row(case: Case, outcome: Outcome) -> str:
    """Table row of a case in the document."""
    called = f"{case.command} {' '.join(case.arguments)}"
    cells = (case.kind, cut(case.wrong), f"<code>{escaped(cut(called))}</code>")
    return f"| {' | '.join([*map(escaped, cells[:2]), cells[2], escaped(outcome.message)])} |"


def without_reasons(line: str) -> str:
    """A row without parenthesized reasons, which come from Python, packages or the system."""
    return re.sub(r"\([^()]*\)", "()", line)


def cut(text: str, most: int = 110) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def escaped(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    plain = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(text, quote=False))
    return plain.replace("\n", "<br>")


def document(rows: Sequence[str]) -> str:
    return "\n".join(
        [
            "# Wrong inputs, and what is said to them",
            "",
            f"Made by `{RENEW}`; `pytest tests/robustness/test_wrong_inputs.py` runs every",
            "case, and fails where a message differs. Each ends with exit code 2, one `error:`",
            "and no traceback, and leaves and changes no file; a run that has begun leaves its",
            "folder.",
            "The cases are in `tests/robustness/wrong_*.py`.",
            "",
            "| what | wrong | command | message |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Rewrite docs/wrong-inputs.md."""
    from tests.robustness.wrong_cases import CASES

    with tempfile.TemporaryDirectory() as place:
        sound = Path(place) / "sound"
        sound.mkdir()
        sound_folder(sound)
        rows = []
        for number, case in enumerate(CASES):
            folder = Path(place) / str(number) / "here"
            shutil.copytree(sound, folder)
            outcome = run(case, folder)
            for fault in faults(case, outcome):
                print(f"{case}: {fault}", file=sys.stderr)
            rows.append(row(case, outcome))
            shutil.rmtree(folder.parent)
    DOCUMENT.write_text(document(rows), encoding="utf-8")
    print(f"{DOCUMENT.relative_to(PROJECT)}: {len(rows)} cases")


if __name__ == "__main__":
    main()
