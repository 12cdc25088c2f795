"""Tables are wrapped on a terminal but not in a pipe; progress is one line on a terminal."""

import logging
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lavis_ext.common import progress
from lavis_ext.common.progress import ProgressLine
from lavis_ext.common.tables import facts, markdown, show, table

PROJECT = Path(__file__).parents[2]
LONG = "word " * 19
ROWS = [("accuracy", "50.00 %", "red"), ("distribution", "1.5", LONG), ("count", "-", "")]


def on_terminal(program: str, columns: int) -> str:
    """Output of a program to a terminal with ``columns``."""
    ours, theirs = pty.openpty()
    environment = {"COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONPATH": str(PROJECT)}
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    done = subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=kept | environment
    )
    os.close(theirs)
    written = b""
    try:
        while some := os.read(ours, 65536):
            written += some
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    assert done.wait() == 0, written
    return written.decode().replace("\r\n", "\n")


def test_numbers_are_aligned_right_and_texts_left() -> None:
    assert str(table(ROWS[:1] + ROWS[2:], ("metric", "value", "note"))).splitlines() == [
        "metric      value  note",
        "accuracy  50.00 %  red",
        "count           -",
    ]


def test_a_pipe_gets_whole_lines_without_styles(capsys: pytest.CaptureFixture[str]) -> None:
    show("title", table(ROWS, ("metric", "value", "note")), facts([("note", LONG * 5)]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert any(line.endswith(LONG.strip()) for line in out.splitlines())
    assert f"note  {(LONG * 5).strip()}" in out.splitlines()


def test_a_terminal_gets_lines_of_its_width_and_bold_headers() -> None:
    made = (
        f"from lavis_ext.common.tables import *; show(table({ROWS}, ('metric', 'value', 'note')))"
    )
    out = on_terminal(made, columns=60)
    assert "\x1b[1mmetric" in out
    rows = out.splitlines()[1:]
    assert len(rows) == 2 + 3
    assert max(map(len, rows)) <= 60
    assert on_terminal(made, columns=200).count("\n") == 4


def test_facts_align_with_those_printed_before() -> None:
    assert str(facts([("steps", "5"), ("", "more")], width=11)) == (
        "steps        5\n             more"
    )


def test_cells_are_escaped_and_truncated() -> None:
    text = str(table([("[bold]x[/bold]", ":smile:"), ("y" * 500, "\x1b[2J")]))
    assert "[bold]x[/bold]" in text
    assert ":smile:" in text
    assert max(map(len, text.splitlines())) < 120
    assert "\x1b" not in text


def test_markdown_has_a_row_a_line() -> None:
    text = markdown([("fast", "80")], ("", "questions"))
    assert text.splitlines() == ["|  | questions |", "| --- | --- |", "| fast | 80 |"]


LOGGED = """
import logging, time
from lavis_ext.common import logs, progress
from lavis_ext.common.progress import ProgressLine
progress.SECONDS_A_LINE = progress.SECONDS_A_REFRESH = 0.0
logs.log_to_stderr()
log = logging.getLogger("lavis_ext.part")
with ProgressLine.logged(log) as line:
    for number in range(3):
        line.update(f"{number} of 3 [red]")
        if number == 1:
            log.warning("in between")
log.info("done")
"""


def test_a_terminal_shows_one_progress_line_and_clears_it() -> None:
    out = on_terminal(LOGGED, columns=80)
    assert "2 of 3 [red]" in out
    assert "in between\n" in out
    assert out.endswith("\x1b[2Kdone\n")
    assert "\x1b[?25l" not in out, "a killed process would leave the terminal without its cursor"


def test_a_pipe_gets_a_line_a_state() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGGED], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    states = [f"{number} of 3 [red]" for number in range(3)]
    assert done.stderr.splitlines() == [*states[:2], "in between", states[2], "done"]


def test_lines_are_rare_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = ProgressLine(lines.append, None, seconds=5.0)
    for second in range(12):
        now[0] = float(second)
        line.update(f"{second} s")
    assert lines == ["5 s", "10 s"]


def test_a_silent_log_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    silent = logging.Logger("silent", logging.WARNING)
    records: list[logging.LogRecord] = []
    silent.addFilter(lambda record: records.append(record) or True)  # type: ignore[func-returns-value]
    with ProgressLine.logged(silent) as line:
        line.update("1 of 2")
    assert not records


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in ``python -m lavis_ext keys | head -1``."""
    code = (
        "from lavis_ext.common.errors import command; from lavis_ext.common.tables import show; "
        "command(lambda: show('line', 'word ' * 10**6))()"
    )
    command = f"{sys.executable} -c {shlex.quote(code)}; echo code $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -1"], cwd=PROJECT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("line\n", "code 0\n")


def test_rich_is_imported_only_to_lay_out_text() -> None:
    code = (
        "import sys, lavis_ext.common.tables, lavis_ext.common.progress; assert 'rich' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
