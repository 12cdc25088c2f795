"""``python -m lavis_ext.status`` tells where a run is, and how it ended."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis_ext import status
from lavis_ext.config.loader import Config
from lavis_ext.runners import status_file, trainer
from lavis_ext.runners.launch import started
from lavis_ext.runners.run_folder import STATUS
from tests.runners.test_runner import TINY_MODEL

pytestmark = pytest.mark.beyond_core

SPLITS = ["train", "val", "testdev"]


@pytest.fixture
def config(configured: Callable[..., Config], tiny_options: list[str]) -> Callable[..., Config]:
    """Three steps of 16 questions, then a validation."""
    return lambda *more: configured(*tiny_options, *TINY_MODEL, *more)


def shown(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    status.main([str(folder), *more])
    return capsys.readouterr().out


def test_a_run_is_watched_from_its_first_line_to_its_end(
    config: Callable[..., Config],
    before_step: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(status_file, "SECONDS", 0.01)
    monkeypatch.setattr(trainer, "FIRST_LINE_SECONDS", 0.0)
    seen = []

    def look() -> None:
        (folder,) = (tmp_path / "output").iterdir()
        deadline = time.monotonic() + 60
        while "computing step 3" not in (folder / STATUS).read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first, *others = capsys.readouterr().out.splitlines()
        assert first == f"run: {folder}"
        assert any(line.startswith("step 1/3  ") and "left" in line for line in others)
        seen.append(shown(folder, capsys))

    before_step(3, look)
    with started(config(), SPLITS) as runner:
        runner.train()
    (running,) = seen
    assert f"process {os.getpid()} on {socket.gethostname()}" in running
    assert "state   running for" in running
    assert "2 of 3, " in running
    assert "left, plus evaluations" in running
    assert "rank 0  computing step 3, for" in running
    finished = shown(runner.output_dir, capsys, "--follow")
    assert "finished" in finished
    assert "answer_accuracy" in finished
    assert "rank 0" not in finished


def test_a_report_is_there_from_the_first_validation_on(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = []
    validate = trainer.Trainer.validate

    def watched(self: trainer.Trainer) -> None:
        validate(self)
        written.append((self.output_dir / "report.html").read_text(encoding="utf-8"))

    monkeypatch.setattr(trainer.Trainer, "validate", watched)
    with started(config("run.max_epoch=2", "run.log_freq=1"), SPLITS) as runner:
        runner.train()
    first, second = written
    assert '"name":"val"' in first
    assert '["state","training goes on"]' in first
    assert '["steps","3 of 6' in first
    assert '["steps","6 of 6' in second
    last = (runner.output_dir / "report.html").read_text(encoding="utf-8")
    assert '"name":"testdev"' in last
    assert "training goes on" not in last


def test_a_stopped_a_failed_and_a_killed_run_are_told_apart(
    config: Callable[..., Config],
    before_step: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise ValueError("a bad batch")

    before_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit), started(config(), SPLITS) as runner:
        runner.train()
    said = shown(runner.output_dir, capsys)
    assert "stopped" in said
    assert f"SIGTERM; run.resume={runner.output_dir} continues it" in " ".join(said.split())
    before_step(3, fail)
    with pytest.raises(ValueError, match="a bad batch"), started(config(), SPLITS) as runner:
        runner.train()
    said = shown(runner.output_dir, capsys)
    assert "failed" in said
    assert "a bad batch" in said
    path = runner.output_dir / STATUS
    alive = json.loads(path.read_text()) | {"state": "running"}
    for host, ago, killed in (("here", 1, True), ("elsewhere", 1, False), ("elsewhere", 60, True)):
        here = socket.gethostname()
        gone = 2**22 + 1  # above the largest process id
        facts = {"host": here if host == "here" else host, "process": gone}
        path.write_text(json.dumps(alive | facts | {"time": time.time() - ago}))
        assert ("killed" in shown(runner.output_dir, capsys)) == killed, (host, ago)


def test_the_newest_run_is_the_default_and_other_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            status.main(list(arguments))
        assert ended.value.code == 2
        return capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    assert "output has no run. Give the run's folder" in said()
    for age, name in enumerate(("new", "old")):
        run = tmp_path / "output" / name
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (1e9 - age, 1e9 - age))
    status.main([])
    assert "output/new" in capsys.readouterr().out
    assert "missing doesn't exist" in said("missing")
    assert "output is not the folder of a run: it has no config.yaml" in said("output")
    assert "It has runs: new, old." in said("output")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"state": "runn', "Unterminated string"),
        ("[1]", "no JSON object"),
        ('{"state": "finished"}', "no 'time'"),
        ('{"time": "yesterday", "started": 0}', "a value of another kind"),
        ('{"time": 1e999, "started": 0}', "a value of another kind"),
        ("named pipe", "a named pipe"),
    ],
)
def test_a_damaged_status_or_another_versions_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "config.yaml").touch()
    if text == "named pipe":
        os.mkfifo(tmp_path / STATUS)
    else:
        (tmp_path / STATUS).write_text(text)
    with pytest.raises(SystemExit) as ended:
        status.main([str(tmp_path)])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / STATUS} isn't what this version writes ({said}" in err
    assert "log.jsonl" in err


def test_lines_of_the_log_that_are_no_steps_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").touch()
    lines = ['{"kind": "val", "step": "x", "loss": 1}', '{"kind": "train", "step": 2, "loss": 0.5}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    out = shown(tmp_path, capsys)
    assert "loss 0.5 (step 2)" in out
    assert "val" not in out


def test_paths_that_are_no_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path, said in (("file", "file is a file"), ("n" * 300, "doesn't exist")):
        with pytest.raises(SystemExit) as ended:
            status.main([str(tmp_path / path)])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
