"""Every wrong input ends with the documented error message and leaves no file behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.robustness.wrong_cases import ALONE, CASES
from tests.robustness.wrong_inputs import (
    COMMANDS,
    DOCUMENT,
    PROJECT,
    RENEW,
    Case,
    faults,
    row,
    run,
    sound_folder,
    without_reasons,
)

pytestmark = pytest.mark.beyond_core

DAMAGED_KINDS = ("config", "questions", "image", "weights", "features", "state", "predictions")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "here"
    folder.mkdir()
    sound_folder(folder)
    return folder


@pytest.fixture(scope="module")
def documented() -> set[str]:
    return set(map(without_reasons, DOCUMENT.read_text(encoding="utf-8").splitlines()))


@pytest.mark.usefixtures("registry_as_installed")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_input_is_reported_in_one_sentence_and_leaves_no_file(
    case: Case, sound: Path, tmp_path: Path, documented: set[str]
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(sound, folder)
    outcome = run(case, folder)
    assert faults(case, outcome) == []
    line = without_reasons(row(case, outcome))
    assert line in documented, f"{DOCUMENT.name} is out of date: {RENEW}"
    shutil.rmtree(folder)


def test_the_page_lists_exactly_these_cases() -> None:
    made = {(case.kind, case.wrong) for case in CASES}
    assert len(made) == len(CASES) >= 60
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == len(CASES) + 2, f"{DOCUMENT.name} lists other cases: {RENEW}"
    for kind in DAMAGED_KINDS:
        assert sum(case.kind.startswith(kind) for case in CASES) >= 8, kind


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_a_separate_process_prints_the_same_message(
    case: Case, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(sound, folder)
    monkeypatch.chdir(folder)
    case.damage()
    called = COMMANDS[case.command][0]
    program = [str(PROJECT / called)] if called.endswith(".py") else called.split()
    done = subprocess.run(
        [sys.executable, *program, *case.arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert case.says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_undamaged_folder_is_read(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise cases might fail for another reason."""
    shutil.copytree(sound, tmp_path / "here")
    good: list[tuple[str, list[str]]] = [
        ("train", ["--cfg-path", "mine.yaml"]),
        ("gqa", ["--questions=gqa/questions/val_all_questions.json"]),
    ]
    good[1][1].append("--predictions=predictions.json")
    for command, arguments in good:
        outcome = run(Case("sound", "", command, arguments), tmp_path / "here")
        assert outcome.code == 0, outcome.err
