"""Every code block of README and docs works: one test for each command, module and config in them.

The test's name says how it is checked (``pytest tests/docs --collect-only``):

- ``runs``: it is executed, in a folder that has what the docs name (data, predictions, weights).
- ``parses``: its program exists and takes the arguments, and the config that they name loads; for
  what needs GQA's data, GPUs, SLURM, a network or minutes.
- ``loads``: a YAML is a config, or becomes one over a shipped config.
- ``included``: the file that the page takes in exists, and is Python or YAML.

A block of another kind, or an indented one, fails.
"""

import argparse
import compileall
import contextlib
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

import lavis_ext.encoders.bert
import lavis_ext.encoders.blip.encoder
import lavis_ext.encoders.efficient_sam.encoder
import lavis_ext.encoders.timm  # noqa: F401  (registered before a test takes the registry's names)
from lavis_ext.config.loader import Config
from lavis_ext.registry import KINDS, registry
from tests.gqa_rule import write_files

pytestmark = [pytest.mark.beyond_core, pytest.mark.usefixtures("registry_as_installed")]

PROJECT = Path(__file__).parents[2]
PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted(PROJECT.glob("docs/**/*.md")),
]
BASE = PROJECT / "projects" / "pnp-vqa" / "train" / "mini_train.yaml"
"""What a YAML that is a part of a config is merged over."""
WEIGHTS = PROJECT / "lavis_ext" / "miniature" / "fusion_encoder.safetensors"
INCLUDE = re.compile(r'^;?--8<-- "([^"]+)"$')

RUN = {
    "lavis_ext",
    "lavis_ext.ask",
    "lavis_ext.evaluation.compare",
    "lavis_ext.evaluation.gqa",
    "lavis_ext.evaluation.leaderboard",
    "lavis_ext.evaluation.report",
}
"""Modules that take seconds; the others train, draw, download or measure."""


@dataclass(frozen=True)
class Piece:
    """A block, or one command of a block of shell."""

    page: Path
    line: int
    kind: str
    text: str
    how: str

    def __str__(self) -> str:
        first = self.text.partition("\n")[0][:40]
        return f"{self.page.relative_to(PROJECT)}:{self.line} {self.kind} {self.how}: {first}"


def pieces(page: Path) -> Iterator[Piece]:
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map is not None
        line = token.map[0] + 1
        kind = token.info.partition(" ")[0]
        if INCLUDE.match(token.content.strip()):
            yield Piece(page, line, kind, token.content.strip(), "included")
        elif kind == "sh":
            for command in commands(token.content):
                yield Piece(page, line, kind, command, "runs" if is_run(command) else "parses")
        else:
            how = {"python": "runs", "yaml": "loads"}.get(kind, "unknown")
            yield Piece(page, line, kind or "indented", token.content, how)


def commands(text: str) -> list[str]:
    """The commands of a block of shell, each on one line, without comments."""
    joined = text.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.split("#")[0].strip()]


def is_run(command: str) -> bool:
    words = shlex.split(command, comments=True)
    return (
        words[:2] == ["python", "-m"]
        and words[2] in RUN
        and words[3:4] not in (["fetch"], ["push"])
    )


PIECES = [piece for page in PAGES for piece in pieces(page)]


@pytest.fixture(scope="module")
def place(mini_gqa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that commands in the docs name."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("projects", "run_scripts", "train.py", "evaluate.py", "requirements.lock"):
        (folder / name).symlink_to(PROJECT / name)
    (folder / "data").mkdir()
    shutil.copytree(mini_gqa, folder / "data" / "mini_gqa")
    (folder / "IMAGES").symlink_to(mini_gqa / "images")
    picture = sorted((mini_gqa / "images").iterdir())[0]
    shutil.copy(picture, folder / "PICTURE.jpg")
    shutil.copy(picture, folder / "data" / "mini_gqa" / "images" / "0003964.jpg")
    questions = mini_gqa / "questions" / "val_all_questions.json"
    choices = mini_gqa / "choices" / "val_choices.json"
    write_files(questions, choices, folder)
    for name, source in {
        "QUESTIONS.json": questions,
        "CHOICES.json": choices,
        "SCENES.json": mini_gqa / "sceneGraphs" / "val_sceneGraphs.json",
        "P.json": folder / "predictions.json",
        "A.json": folder / "maps.json",
    }.items():
        shutil.copy(source, folder / name)
    predictions = json.loads((folder / "P.json").read_text())
    changed = [{**each, "prediction": "no"} for each in predictions[:50]] + predictions[50:]
    (folder / "Q.json").write_text(json.dumps(changed))
    run = folder / "output" / "RUN"
    run.mkdir(parents=True)
    (run / "fusion_encoder_best.safetensors").symlink_to(WEIGHTS)
    (folder / "OWNER").mkdir()
    for name in ("NAME", "NAME@COMMIT"):  # in place of a name on the hub
        (folder / "OWNER" / name).symlink_to(WEIGHTS)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in KINDS:
        names = f"{kind}_name_mapping"
        monkeypatch.setitem(registry.mapping, names, {**registry.mapping.get(names, {})})
    return place


@pytest.mark.parametrize("piece", PIECES, ids=str)
def test_a_code_block_works(piece: Piece, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in write_modules(piece.page, here):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if piece.how == "included":
        check_included(piece)
    elif piece.kind == "sh":
        check_command(shlex.split(piece.text, comments=True))
    elif piece.kind == "python":
        run_python(piece)
    elif piece.kind == "yaml":
        load_config(piece, here)
    else:
        pytest.fail(f"{piece}: no known kind of block; give it a language, sh, python or yaml")


def test_there_are_blocks_of_each_kind() -> None:
    """Guards against a moved page or a parser that finds nothing."""
    assert {piece.kind for piece in PIECES} >= {"sh", "python", "yaml"}
    assert {piece.how for piece in PIECES} >= {"runs", "parses", "loads"}
    assert {"README.md", "CONTRIBUTING.md", "extend.md"} <= {piece.page.name for piece in PIECES}


# --- Python and YAML -----------------------------------------------------------------------------


def write_modules(page: Path, folder: Path) -> list[str]:
    """Write the page's blocks that have a file's name as their title, for configs to import."""
    names = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([\w.]+\.py)"', token.info)
        if token.type == "fence" and title:
            (folder / title[1]).write_text(token.content)
            names.append(Path(title[1]).stem)
    importlib.invalidate_caches()
    return names


def run_python(piece: Piece) -> None:
    module = types.ModuleType("block")
    sys.modules["block"] = module  # dataclasses look up their module
    try:
        exec(compile(piece.text, str(piece), "exec"), module.__dict__)
    finally:
        del sys.modules["block"]


def load_config(piece: Piece, folder: Path) -> None:
    given = OmegaConf.create(yaml.safe_load(piece.text))
    assert isinstance(given, DictConfig)
    if not {"model", "datasets", "run"} <= set(given):
        given = OmegaConf.merge(OmegaConf.load(BASE), given)  # type: ignore[assignment]
    path = folder / "block.yaml"
    path.write_text(OmegaConf.to_yaml(given))
    Config(Namespace(cfg_path=str(path), options=[]))


def check_included(piece: Piece) -> None:
    found = INCLUDE.match(piece.text)
    assert found
    path = PROJECT / found[1]
    assert path.is_file(), path
    if path.suffix == ".py":
        assert compileall.compile_file(str(path), quiet=2, legacy=False)
    elif path.suffix in (".yaml", ".yml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


# --- commands ------------------------------------------------------------------------------------


class Parsed(BaseException):
    """The program has its arguments."""


def check_command(words: list[str]) -> None:
    while "=" in words[0]:
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "make":
        done = subprocess.run(
            ["make", "-n", *arguments], cwd=PROJECT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        rules = (PROJECT / "Makefile").read_text()
        for target in (each for each in arguments if "=" not in each):
            assert re.search(rf"^{target}:", rules, re.MULTILINE), target
    elif program == "python":
        check_python(arguments)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(arguments)
        is_module = ["-m"] if options.module else []
        check_python([*is_module, options.training_script, *options.training_script_args])
    elif program == "sbatch":
        script = next(index for index, word in enumerate(arguments) if word.endswith(".sh"))
        check_script(arguments[script])
        module = re.search(r'python -m (\S+) "\$@"', Path(arguments[script]).read_text())
        if module:
            check_python(["-m", module[1], *arguments[script + 1 :]])
            return
        config, *options = arguments[script + 1 :]
        Config(Namespace(cfg_path=config, options=options))
    elif program.endswith(".sh"):
        check_script(program)
        module = re.search(r'exec python -m (\S+) "\$@"', Path(program).read_text())
        assert module or not arguments, program
        if module:
            check_python(["-m", module[1], *arguments])
    elif program == "pip":
        check_pip(arguments)
    elif program == "lmms-eval":
        assert arguments[:3] == ["--model", "lavis_ext", "--model_args"], arguments
    elif program == "pytest":
        for path in arguments:
            assert (PROJECT / path).exists(), path
    else:
        pytest.fail(f"'{program}' is no program that this test knows")


def check_script(path: str) -> None:
    assert os.access(path, os.X_OK), path
    subprocess.run(["bash", "-n", path], check=True)


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    rest = iter(arguments[1:])
    for word in rest:
        if word == "--constraint":
            assert (PROJECT / next(rest)).is_file()
        elif word == "." or re.fullmatch(r"\.\[[\w,]+\]", word):
            assert (PROJECT / "pyproject.toml").is_file()
        elif not word.startswith("-"):
            Requirement(word)


def check_python(arguments: list[str]) -> None:
    """Run the program, or stop it when it has parsed its arguments and load its config."""
    runs = is_run(shlex.join(["python", *arguments]))
    is_module = arguments[0] == "-m"
    name, *rest = arguments[1:] if is_module else arguments
    parsed: list[Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        parsed.append(parse(parser, *args, **kwargs))
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *rest])
        if not runs:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(Parsed):
            if is_module:
                loaded = sys.modules.pop(f"{name}.__main__", sys.modules.get(name))
                try:
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
                finally:
                    if loaded is not None and loaded.__name__ == name:
                        sys.modules[name] = loaded
            else:
                runpy.run_path(name, run_name="__main__")
    if runs:
        assert out.getvalue().strip(), f"{name} prints nothing"
        return
    assert parsed, f"{name} parses no arguments"
    if hasattr(parsed[0], "cfg_path"):
        Config(parsed[0])
