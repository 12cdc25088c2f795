"""``make demo`` goes on where an interrupted one was. Its programs are replaced by a stub."""

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "run_scripts" / "demo.sh"
STUB = """#!/usr/bin/env bash
echo "$*" >> calls
[ -e interrupted ] && [ "$1" = "$(cat interrupted)" ] && exit 130
[ "$1" = train.py ] && name=mini_train-1
[ "$1" = evaluate.py ] && name=$(basename "$3" .yaml)-1
if [ -n "${name:-}" ]; then
    folder=$(echo "$*" | grep -o "output_dir=[^ ]*" | cut -d= -f2)/$name
    mkdir -p "$folder"
    touch "$folder/metrics.json" "$folder/fusion_encoder_best.safetensors"
fi
exit 0
"""


def demo(folder: Path, interrupted: str = "none") -> tuple[int, list[str]]:
    """Exit code of the demo and the programs it called."""
    (folder / "calls").unlink(missing_ok=True)
    (folder / "interrupted").write_text(interrupted)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [folder / "run_scripts" / "demo.sh"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


def folders(folder: Path) -> int:
    return len(list((folder / "output").glob("demo.*")))


def test_an_interrupted_demo_is_continued_and_a_finished_one_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "run_scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "run_scripts")
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    code, calls = demo(tmp_path, "train.py")
    assert (code, len(calls)) == (130, 1)
    assert "run.resume=auto" in calls[0]
    code, calls = demo(tmp_path, "evaluate.py")
    assert (code, len(calls)) == (130, 2)
    code, calls = demo(tmp_path)
    assert code == 0
    assert [call.split()[0] for call in calls] == ["evaluate.py", "evaluate.py", "-m"]
    assert folders(tmp_path) == 1
    assert len(demo(tmp_path)[1]) == 4
    assert folders(tmp_path) == 2
