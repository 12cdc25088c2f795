"""Train a sweep's runs, and report after each."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from lavis_ext.common.errors import REMEDIES, UserError
from lavis_ext.common.files import write_json, written_aside
from lavis_ext.common.tables import show
from lavis_ext.evaluation.table import shown
from lavis_ext.runners.progress import duration
from lavis_ext.sweep.folder import Status, SweepFolder
from lavis_ext.sweep.grid import PlannedRun
from lavis_ext.sweep.page import page_content, write_page
from lavis_ext.sweep.processes import Job, Workers
from lavis_ext.sweep.results import Results
from lavis_ext.sweep.search import Search
from lavis_ext.sweep.tables import result_json, result_markdown, result_tables

TABLE, NUMBERS, PAGE = "sweep.md", "results.json", "sweep.html"


@dataclass(frozen=True)
class Session:
    """Trains runs of one sweep.

    Attributes:
        folder: the sweep's folder.
        options: ``KEY=VALUE`` shared by all runs.
        workers: the processes.
        collected: collects the results so far.
        search: the search, whose trials are told how they ended; None for a grid.
    """

    folder: SweepFolder
    options: list[str]
    workers: Workers
    collected: Callable[[], Results]
    search: Search | None = None

    def train(self, runs: Iterator[PlannedRun], *, reports: bool = True) -> None:
        """Train runs, skipping finished ones, until a signal comes.

        With ``reports``, table and page are renewed after each run.
        """
        known: dict[str, PlannedRun] = {}

        def jobs() -> Iterator[Job]:
            for run in runs:
                known[run.name] = run
                if self.folder.status(run.name)[0] is not Status.FINISHED:
                    yield self.folder.job(run.name, [*self.options, *run.options])
                elif self.search is not None:  # it was killed before it told so
                    self._tell(run)

        def started(job: Job) -> None:
            resumed = self.folder.status(job.name)[0] is not Status.WAITING
            self.folder.note_start(job.name)
            say(f"{job.name}: {'continues' if resumed else 'starts'}")

        def ended(job: Job, code: int, seconds: float) -> None:
            self.folder.note_end(job.name, code)
            status, error = self.folder.status(job.name)
            taken = f"{job.name}: {status} after {duration(seconds)}"
            if self.search is not None and status is not Status.INTERRUPTED:
                self._tell(known[job.name])
            results = self.collected()
            say(f"{taken}{_reached(results, job.name, status, error)}")
            if reports:
                try:
                    write_results(self.folder, results)
                except UserError as error:  # the other runs go on
                    say(f"warning: {error}")

        with self.workers:
            self.workers.run(jobs(), started, ended)

    def _tell(self, run: PlannedRun) -> None:
        assert self.search is not None
        results = self.collected()
        result = next(each for each in results.runs if each.run.name == run.name)
        self.search.tell(run, results.metric, result.value)


def search_runs(search: Search) -> Iterator[PlannedRun]:
    """A search's interrupted and failed trials, then new ones."""
    return chain(search.pending(), search.begin())


def write_results(folder: SweepFolder, results: Results) -> None:
    """Write table, numbers and page. Raises UserError if they can't be written."""
    try:
        with written_aside(folder.path / TABLE) as aside:
            aside.write_text(result_markdown(results), encoding="utf-8")
        write_json(folder.path / NUMBERS, result_json(results))
        write_page(folder.path / PAGE, page_content(results, folder))
    except OSError as error:
        raise UserError(
            f"{folder.path} can't be written ({error.strerror}). "
            f"{REMEDIES.get(error.errno or 0, 'Mend that.')} The same command goes on: runs that "
            "finished aren't repeated."
        ) from None


def show_results(folder: SweepFolder, results: Results) -> None:
    """Print the table and where the page is."""
    say("")
    show(*result_tables(results), f"page: {folder.path / PAGE}")


def exit_code(results: Results, received: int) -> int:
    """128 plus a signal's number, 1 if a run failed, else 0."""
    if received:
        say(f"{signal.Signals(received).name}: give the same command to go on")
        return 128 + received
    return 1 if results.with_status(Status.FAILED) else 0


def say(text: str) -> None:
    """Print a line at once, also into a file or a pipe."""
    print(text, flush=True)


def _reached(results: Results, name: str, status: Status, error: str) -> str:
    if status is not Status.FINISHED:
        return f": {error}" if error else ""
    value = next(each.value for each in results.runs if each.run.name == name)
    return f": {results.metric.name} {shown(results.metric, value)} on {results.split}"
