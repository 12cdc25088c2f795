"""Where a run is: ``python -m lavis_ext.status [RUN] [--follow]``, in another terminal."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command, listed, printable, shortened
from lavis_ext.common.files import is_file, is_folder, object_of, parse_json
from lavis_ext.common.metrics import LOSS
from lavis_ext.common.tables import Table, facts
from lavis_ext.runners.progress import duration, left_in_words
from lavis_ext.runners.run_folder import (
    CONFIG,
    FAILED,
    FINISHED,
    LINES,
    METRICS,
    RUNNING,
    STATUS,
    STOPPED,
)

OUTPUT = Path("output")
SILENT_SECONDS = 15.0
"""Seconds without a new ``status.json`` after which a run counts as killed or stopped."""
SECONDS_A_LOOK = 1.0
"""Interval of ``--follow`` on a terminal."""
SECONDS_A_TABLE = 10.0
"""Interval of ``--follow`` in a file or a pipe."""
TAIL_BYTES = 2**18
PACE = ("time", "kind", "step", "epoch", "skipped_steps", "waiting_for_data", "examples_per_second")
MOST_METRICS = 6


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print where a run is; with ``--follow`` until it ends."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.status",
        description="Tell where a run is: step, rate, time left, last metrics, each process.",
    )
    parser.add_argument(
        "run", nargs="?", type=path_argument, help="folder of a run; by default the newest"
    )
    parser.add_argument("--follow", action="store_true", help="refresh until the run ends")
    arguments = parser.parse_args(argv)
    folder = newest_run(OUTPUT) if arguments.run is None else arguments.run
    check_run(folder)
    if not arguments.follow:
        print(status_table(folder))
        return
    try:
        _follow(folder)
    except KeyboardInterrupt:
        return


def _follow(folder: Path) -> None:
    if not sys.stdout.isatty():
        while True:
            print(status_table(folder), end="\n\n", flush=True)
            if not is_running(read_status(folder)):
                return
            time.sleep(SECONDS_A_TABLE)
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            live.update(status_table(folder).rich(), refresh=True)
            if not is_running(read_status(folder)):
                return
            time.sleep(SECONDS_A_LOOK)


def newest_run(output: Path) -> Path:
    """The run in a folder of runs that was written to last. Raises UserError if there is none."""
    runs = _runs_in(output)
    if not runs:
        raise UserError(
            f"{output.absolute()} has no run. Give the run's folder: python -m lavis_ext.status RUN"
        )
    return runs[0]


def _runs_in(folder: Path) -> list[Path]:
    """Folders of runs, the one that was written to last first."""
    found = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    return sorted(found, key=_written, reverse=True)


def _written(run: Path) -> float:
    status = run / STATUS
    return (status if is_file(status) else run / CONFIG).stat().st_mtime


def check_run(folder: Path) -> None:
    """Raise UserError for a path that isn't the folder of a run."""
    if is_file(folder / CONFIG):
        return
    if is_file(folder):
        raise UserError(f"{folder} is a file; give the folder of a run.")
    if not is_folder(folder):
        raise UserError(f"{folder} doesn't exist; give the folder of a run.")
    runs = [run.name for run in _runs_in(folder)]
    inside = f" It has runs: {listed(runs)}. Give one of them." if runs else ""
    raise UserError(f"{folder} is not the folder of a run: it has no {CONFIG}.{inside}")


def read_status(folder: Path) -> dict[str, Any]:
    """Content of ``status.json``; empty if there is none. Raises UserError for a damaged one."""
    path = folder / STATUS
    try:
        return object_of(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _no_status(folder, getattr(error, "strerror", None) or error) from None


def _no_status(folder: Path, reason: object) -> UserError:
    return UserError(
        f"{folder / STATUS} isn't what this version writes ({shortened(str(reason), 120)}). What "
        f"the run has done is in {folder / LINES}."
    )


def is_running(status: Mapping[str, Any]) -> bool:
    """Whether a run's process lives, as far as can be seen from here."""
    if status.get("state") != RUNNING:
        return False
    if status.get("host") == socket.gethostname():
        return _lives(int(status.get("process", 0)))
    return time.time() - float(status["time"]) < SILENT_SECONDS


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def status_table(folder: Path) -> Table:
    """Where a run is, as a table of facts. Raises UserError for the status of another version."""
    status = read_status(folder)
    try:
        return _table(folder, status)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else "a value of another kind"
        raise _no_status(folder, reason) from None


def _table(folder: Path, status: Mapping[str, Any]) -> Table:
    rows = [("run", str(folder)), ("state", _state(folder, status))]
    if status.get("steps"):
        rows.append(("step", _step(status)))
    evaluation = status.get("evaluation")
    if evaluation and is_running(status):
        batch = f"{evaluation['split']}: batch {evaluation['done']:,} of {evaluation['batches']:,}"
        left = duration(evaluation["seconds_left"])
        rows.append(("evaluation", f"{batch}, {left} left of this evaluation"))
    rows += _last_metrics(folder, status)
    if status.get("best") is not None:
        rows.append(("best", f"{status['metric']} {status['best']:.4g}"))
    if is_running(status):
        rows += [
            (f"rank {each['rank']}", f"{each['doing']}, for {duration(each['seconds'])}")
            for each in status.get("ranks", ())
        ]
    return facts([(label, printable(text)) for label, text in rows])


def _state(folder: Path, status: Mapping[str, Any]) -> str:
    if not status:
        finished = "finished" if is_file(folder / METRICS) else "unknown: it hasn't begun yet"
        return f"{finished} (no {STATUS})"
    since = time.time() - status["time"]
    ran = duration(status["time"] - status["started"])
    where = f"process {status['process']} on {status['host']}"
    if is_running(status):
        silent = f"; nothing was heard for {duration(since)}" if since >= SILENT_SECONDS else ""
        return f"running for {ran}, {where}{silent}"
    ago = f"{duration(since)} ago"
    reason = f": {status['reason']}" if status.get("reason") else ""
    resume = f"; run.resume={folder} continues it"
    return {
        RUNNING: f"killed {ago}, after {ran}: {where} is gone{resume}",
        STOPPED: f"stopped {ago}, after {ran}{reason}{resume}",
        FAILED: f"failed {ago}, after {ran}{reason}",
        FINISHED: f"finished {ago}, after {ran}",
    }.get(str(status.get("state")), "unknown")


def _step(status: Mapping[str, Any]) -> str:
    text = f"{status['step']:,} of {status['steps']:,}"
    if not is_running(status) or not status["step"]:
        return text
    left = left_in_words(status["seconds_left"], bool(status["untimed_evaluations"]))
    return f"{text}, {status['steps_per_second']:.3g} steps/s, {left}"


def _last_metrics(folder: Path, status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The last line of each kind in the run's log, with the selecting metric first."""
    first = (LOSS, status.get("metric"))
    last: dict[str, dict[str, Any]] = {}
    for line in _tail(folder / LINES):
        try:
            entry = parse_json(line)
        except ValueError:  # a partly read line
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step", 0), int):
            continue
        if isinstance(entry.get("kind"), str):
            last[entry["kind"]] = entry
    texts = {kind: _metrics(entry, first) for kind, entry in last.items()}
    return [(kind, text) for kind, text in texts.items() if text]


def _metrics(entry: Mapping[str, Any], first: Sequence[Any]) -> str:
    values = [
        f"{name} {value:.4g}"
        for name, value in sorted(entry.items(), key=lambda item: item[0] not in first)
        if isinstance(value, int | float) and name not in PACE
    ][:MOST_METRICS]
    rate = entry.get("examples_per_second")
    if values and isinstance(rate, int | float):
        values.append(f"{rate:.3g} examples/s")
    return f"{', '.join(values)} (step {entry.get('step', 0):,})" if values else ""


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
