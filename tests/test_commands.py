"""The list of commands is whole, and running them warns of nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext import __main__ as commands
from lavis_ext.evaluation.gqa.__main__ import main as score

PROJECT = Path(__file__).parents[1]


def test_help_lists_every_program_with_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lavis_ext", "--help"])
    commands.main()
    out = capsys.readouterr().out
    assert "python -m lavis_ext.ask" in out
    assert "answer questions about pictures" in out
    for path in (PROJECT / "lavis_ext").rglob("*.py"):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__main__")
            known = (f"python -m {module} ", f"python -m lavis_ext {parts[-1]} ")
            assert any(each in out for each in known), module
    for name in commands.COMMANDS:
        assert f"python -m lavis_ext {name} " in out


def test_an_unknown_command_points_to_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lavis_ext", "fetsh"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "Did you mean 'fetch'?" in err
    assert "python -m lavis_ext --help" in err


def test_importing_the_package_loads_no_module_that_is_run() -> None:
    """Otherwise ``python -m`` would run it a second time, with a RuntimeWarning."""
    code = "import sys, lavis_ext; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    programs = [name.removeprefix("-m ") for name in commands.ALL_COMMANDS]
    loaded = [name for name in programs if name in done.stdout.split()]
    assert [name for name in loaded if not is_package(name)] == []


def is_package(module: str) -> bool:
    """Whether ``python -m`` runs its ``__main__``, which isn't imported with it."""
    return (PROJECT / Path(*module.split(".")) / "__main__.py").is_file()


def test_an_empty_path_is_not_the_working_directory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        score(["--questions", "", "--predictions", "answers.json"])
    assert ended.value.code == 2
    assert "argument --questions: is empty; give a path" in capsys.readouterr().err


def test_paths_are_read_by_one_type() -> None:
    for path in (PROJECT / "lavis_ext").rglob("*.py"):
        assert "type=Path" not in path.read_text(encoding="utf-8"), path
