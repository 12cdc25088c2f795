"""``python -m lavis_ext.sweep --cfg-path X --grid KEY=V1,V2 run.seed=1,2,3``.

Trains every combination, and compares them in one table and one page.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import is_folder_name
from lavis_ext.config.loader import Config, assignments
from lavis_ext.runners.launch import argument_parser, stem
from lavis_ext.sweep.checks import checked
from lavis_ext.sweep.folder import Status, SweepFolder
from lavis_ext.sweep.grid import PlannedRun, check_keys, parse_grid, planned_runs
from lavis_ext.sweep.processes import Workers
from lavis_ext.sweep.results import Measure, Results, collect, collect_trials
from lavis_ext.sweep.search import Search, bounds, parse_search
from lavis_ext.sweep.session import (
    Session,
    exit_code,
    say,
    search_runs,
    show_results,
    write_results,
)


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Parse the command line. Raises UserError for options that don't go together."""
    parser = argument_parser("Train one config many times, and compare the runs.")
    parser.prog = "python -m lavis_ext.sweep"
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--grid",
        nargs="+",
        metavar="KEY=V1,V2",
        help="values of each key, which are all combined; run.seed repeats each choice, and "
        "KEY+KEY=V1:V1,V2:V2 joins keys",
    )
    what.add_argument(
        "--search",
        nargs="+",
        metavar="KEY=LOW..HIGH",
        help="ranges that Optuna searches, LOW..HIGH:log by the logarithm; V1,V2 is a choice",
    )
    parser.add_argument("--trials", type=_positive, default=20, help="runs of a search (20)")
    parser.add_argument("--name", help="the sweep's folder in run.output_dir (CONFIG-sweep)")
    parser.add_argument("--at-once", type=_positive, default=1, help="runs at the same time (1)")
    parser.add_argument("--nproc", type=_positive, help="processes a run, started by torchrun")
    parser.add_argument("--metric", help="compared metric; by default the runs' own run.metric")
    parser.add_argument(
        "--split", help="split that it is compared on; by default the one that selects weights"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--index", type=int, help="train only this run of the grid, from 0")
    how.add_argument("--print-array", action="store_true", help="print the indices, as 0-8")
    how.add_argument("--report-only", action="store_true", help="train nothing, only compare")
    arguments = parser.parse_args(argv)
    if arguments.search and (arguments.index is not None or arguments.print_array):
        parser.error("--index and --print-array need --grid: a search finds its runs as it goes")
    return arguments


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train the runs of a grid or a search, and compare them."""
    arguments = parse_arguments(argv)
    options = assignments(arguments.options or [])
    axes, ranges = parse_grid(arguments.grid or []), parse_search(arguments.search or [])
    keys = [key for axis in axes for key in axis.keys] + [each.key for each in ranges]
    _check_shared(options, keys)
    runs = planned_runs(axes) if axes else bounds(ranges)
    count = len(runs)
    if arguments.index is not None:
        runs = [_indexed(runs, arguments.index)]
    configs = checked(arguments.cfg_path, options, runs[:1] if arguments.report_only else runs)
    if arguments.print_array:
        print(f"0-{count - 1}")
        return
    name = f"{stem(configs[0])}-sweep" if arguments.name is None else arguments.name
    if not is_folder_name(name):
        raise UserError(f"--name is '{name}'; it must be the name of a folder.")
    folder = SweepFolder(Path(configs[0].run.output_dir) / name)
    if arguments.report_only:
        _report_only(folder, arguments, runs)
        return
    folder.create()
    # Tasks of an array share the folder; each run has a lock of its own.
    lock = folder.lock() if arguments.index is None else None
    with lock or nullcontext():
        asked = {"config": arguments.cfg_path, "keys": arguments.search or keys}
        folder.describe({**asked, "command": sys.argv[1:] if argv is None else list(argv)})
        code = _train(folder, arguments, options, runs, configs)
    if code:
        raise SystemExit(code)


def _train(
    folder: SweepFolder,
    arguments: Namespace,
    options: list[str],
    runs: Sequence[PlannedRun],
    configs: Sequence[Config],
) -> int:
    """Train and report; returns the exit code."""
    search = None
    if arguments.search:
        search = _search(folder, arguments, seed=configs[0].run.seed)
    else:
        for run, cfg in zip(runs, configs, strict=True):
            folder.check_unchanged(run.name, cfg)

    if arguments.index is None:
        folder.note_killed(run.name for run in (runs if search is None else search.runs))

    def collected() -> Results:
        return _collected(folder, arguments, runs if search is None else search.runs, search)

    results = collected()  # of earlier sessions; an unknown metric is found before the first run
    counts = ", ".join(_counts(results)) or "none started"
    planned = arguments.trials if search else len(runs)
    say(f"{folder.path}: {planned} {'trials' if search else 'runs'} ({counts})")
    say(f"what a run prints is in {folder.output('RUN')}")
    workers = Workers(arguments.cfg_path, arguments.at_once, arguments.nproc)
    session = Session(folder, options, workers, collected, search)
    reports = arguments.index is None
    session.train(iter(runs) if search is None else search_runs(search), reports=reports)
    results = collected()
    if reports:
        write_results(folder, results)
        show_results(folder, results)
    return exit_code(results, workers.received)


def _report_only(folder: SweepFolder, arguments: Namespace, runs: Sequence[PlannedRun]) -> None:
    if folder.described() is None:
        raise UserError(
            f"{folder.path} has no sweep; start it first, or give the --name that it was started "
            "with."
        )
    search = _search(folder, arguments, seed=0) if arguments.search else None
    results = _collected(folder, arguments, runs if search is None else search.runs, search)
    write_results(folder, results)
    show_results(folder, results)


def _search(folder: SweepFolder, arguments: Namespace, seed: int) -> Search:
    ranges = parse_search(arguments.search)
    return Search(folder.path, ranges, arguments.trials, seed, arguments.at_once)


def _collected(
    folder: SweepFolder, arguments: Namespace, runs: Sequence[PlannedRun], search: Search | None
) -> Results:
    measure = Measure(arguments.metric, arguments.split)
    found = collect if search is None else collect_trials
    return found(folder, arguments.cfg_path, runs, measure)


def _check_shared(options: Sequence[str], keys: Sequence[str]) -> None:
    """Raise UserError for shared options that the sweep sets or varies."""
    shared = [entry.partition("=")[0].strip() for entry in options]
    check_keys([key for key in dict.fromkeys(shared) if key != "run.output_dir"], "--options")
    if both := [key for key in keys if key in shared]:
        raise UserError(f"{both[0]} is in --options and varied too; leave out one of them.")


def _indexed(runs: Sequence[PlannedRun], index: int) -> PlannedRun:
    if not 0 <= index < len(runs):
        raise UserError(f"--index is {index}; the grid has the runs 0 to {len(runs) - 1}.")
    return runs[index]


def _counts(results: Results) -> list[str]:
    counts = {status: len(results.with_status(status)) for status in Status}
    return [f"{count} {status}" for status, count in counts.items() if count]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


if __name__ == "__main__":
    main()
