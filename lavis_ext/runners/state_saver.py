"""When a run's state is due, and writing it, on a disk that may be full for a while."""

import time
from collections.abc import Callable

from lavis_ext import distributed
from lavis_ext.distributed.peers import SAVING
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.retries import Retries, unwritable
from lavis_ext.runners.run_files import RunFiles
from lavis_ext.runners.run_state import RankState

Moment = tuple[int, int]
"""The steps that a run has taken, and the step of its last validation."""


class StateSaver:
    """Saves a run's state. Every process has one, and all know what has failed.

    Args:
        run: the section ``run``.
        files: the run's folder.
    """

    def __init__(self, run: RunConfig, files: RunFiles) -> None:
        self._run, self._files = run, files
        self._saved: Moment = (-1, -1)
        self._time = time.monotonic()
        self._retries = Retries()

    @property
    def failure(self) -> str | None:
        """What the last try to write a state failed of; None after one that worked."""
        return self._retries.failure

    def found(self, moment: Moment) -> None:
        """The state of this moment is in its file already."""
        self._saved = moment

    def due(self, step: int) -> bool:
        """Whether a state is to be saved after this step, as far as this process can tell."""
        if self._retries.failure is not None:
            return self._retries.due
        minutes, every = self._run.save_every_minutes, self._run.save_every_steps
        late = minutes is not None and time.monotonic() - self._time >= 60 * minutes
        return late or (every is not None and step % every == 0)

    def save(
        self,
        moment: Moment,
        of_rank: Callable[[], RankState],
        write: Callable[[list[RankState]], None],
    ) -> bool:
        """Save the state, unless it is that of the file already; whether it is on the disk.

        Where it can't be written, the one before it stands. Entered by every process.

        Args:
            moment: that of the state.
            of_rank: makes this process's part of it.
            write: writes it with the parts of all processes, in the main process.
        """
        if self._saved == moment:
            return True
        step = moment[0]
        distributed.at(SAVING, step)
        ranks = distributed.gather([of_rank()])

        def written() -> str | None:
            try:
                write(ranks)
            except OSError as error:
                return unwritable(f"the state of step {step} in {self._files.folder}", error)
            return None

        if failure := distributed.from_main_process(written):
            standing = self._files.newest_state
            self._retries.failed(failure, f"Training goes on and tries again; {standing} stands.")
            return False
        self._retries.worked(f"the state of step {step} is saved: it can be written again")
        self._saved, self._time = moment, time.monotonic()
        return True
