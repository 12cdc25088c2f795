"""A few seconds of fuzzing; ``python -m tests.fuzzing.fuzz`` runs longer."""

import time
from pathlib import Path

import pytest

from lavis_ext.common.errors import UserError
from tests.fuzzing import fuzz
from tests.fuzzing.fuzz import TARGETS, Target

pytestmark = pytest.mark.beyond_core

EXAMPLES = {"questions": 300, "vqa": 300, "configs": 60, "weights": 150, "names": 300}


@pytest.mark.parametrize("name", TARGETS)
def test_fuzzed_files_are_read_or_rejected(name: str, tmp_path: Path) -> None:
    tally = fuzz.fuzz(TARGETS[name], seed=0, seconds=800, out=tmp_path, most=EXAMPLES[name])
    assert not tally.faults, tally
    assert tally.examples >= EXAMPLES[name]
    assert 0.05 < tally.accepted / tally.examples < 0.95, "most examples are alike"
    assert len(tally.refusals) >= 8
    assert list(tmp_path.iterdir()) == []


def test_a_fault_is_found_reduced_and_kept(tmp_path: Path) -> None:
    def read(folder: Path, how: object) -> None:
        contents = b"".join(path.read_bytes() for path in folder.rglob("*.json"))
        if b"question_id" in contents:
            raise KeyError("a list is taken for an object")

    tally = fuzz.fuzz(Target(TARGETS["questions"].cases, read), 0, 60, tmp_path, most=100)
    (where,) = tally.faults
    assert where.startswith("KeyError in test_fuzz.py:")
    assert tally.accepted
    (kept,) = tmp_path.iterdir()
    assert "Traceback" in (kept / "fault.txt").read_text()
    (file,) = (kept / "files").rglob("*.json")
    assert file.read_bytes().count(b"question_id") == 1, "the example wasn't made small"


def test_hangs_and_leftover_files_are_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(folder: Path, how: object) -> None:
        try:
            time.sleep(9)
        except Exception:
            raise UserError("taken for damage") from None

    def leave(folder: Path, how: object) -> None:
        (folder / "half").write_text("")
        raise UserError("no")

    monkeypatch.setattr(fuzz, "SECONDS_AN_EXAMPLE", 0.2)
    cases = TARGETS["questions"].cases
    for read, fault in ((hang, "Hang"), (leave, "Left")):
        tally = fuzz.fuzz(Target(cases, read), seed=0, seconds=60, out=tmp_path, most=2)
        assert any(fault in where for where in tally.faults), tally
