"""The folder of a run: taken, described, and written to for as long as the run goes."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.locks import Lock
from lavis_ext.config.loader import Config
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.resuming import Place, check_fits, find_place
from lavis_ext.runners.retries import unwritable
from lavis_ext.runners.run_folder import describe_run, make_run_folder
from lavis_ext.runners.run_log import RunLog, log
from lavis_ext.runners.state import RunState, newest_state, remove_later_states, state_paths

MAKE_ROOM = "Make room, or name another folder with run.output_dir"


class RunFiles:
    """A run's own folder under ``run.output_dir``: a new one or, to go on, an old one.

    Made by all processes together; only the main process writes.

    Args:
        cfg: the run's config.
        stem: begins the folder's name where ``run.name`` doesn't give it.
        batches: what the order of the batches depends on, by name; None for an evaluation.

    Attributes:
        folder: the folder.
        resolved: the config as plain containers.
        state: what the run goes on from; None for one that starts.
        log: the run's log.

    Raises UserError, in every process, for a folder that can't be made, written or gone on with.
    """

    def __init__(
        self, cfg: Config, stem: str, batches: Callable[[], Mapping[str, Any]] | None
    ) -> None:
        self.resolved = cast(dict[str, Any], OmegaConf.to_container(cfg.config))
        self.state: RunState | None = None
        self._cfg = cfg
        self._run: RunConfig = cfg.run
        self._trains = batches is not None
        self._lock: Lock | None = None

        def take() -> tuple[Path, Path | None]:
            place = self._taken(stem, batches)
            self._lock, self.state = place.lock, place.state
            self._described(place, cfg)
            return place.folder, place.path

        self.folder, path = distributed.from_main_process(take)
        if path is not None and self.state is None:
            self.state = RunState.load(path)
        if not distributed.is_main_process():
            self.log = RunLog(None, self._run, self.resolved)
        distributed.from_main_process(self._open_log)

    def may_write(self, path: Path, write: Callable[[], None]) -> None:
        """Let the main process write what a run can do without."""
        if not distributed.is_main_process():
            return
        try:
            write()
        except OSError as error:
            log.warning("%s. Training goes on without it.", unwritable(path, error))

    def must_write(self, path: Path, write: Callable[[], None]) -> None:
        """Let the main process write what a run can't end without. Entered by every process.

        Raises UserError, in every process, where it can't be written.
        """

        def checked() -> None:
            try:
                write()
            except OSError as error:
                raise UserError(f"{unwritable(path, error)}. {self.way_on}") from None

        distributed.from_main_process(checked)

    @property
    def way_on(self) -> str:
        """What to do about a file that can't be written at the end."""
        if not self._trains or not state_paths(self.folder):
            return f"{MAKE_ROOM}, and start again."
        return (
            f"{newest_state(self.folder)} stands: make room, and go on from it with "
            f"run.resume={self.folder}."
        )

    def close(self, *, failed: bool = False) -> None:
        """Close the logs, and leave the folder to others."""
        self.log.close(failed=failed)
        self._leave()

    def _leave(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _taken(self, stem: str, batches: Callable[[], Mapping[str, Any]] | None) -> Place:
        if batches is None:
            if self._run.resume is not None:
                raise UserError("run.resume: an evaluation isn't saved, so none can go on.")
            folder = make_run_folder(Path(self._run.output_dir), stem, self._run.name)
            return Place(folder, None, None, None)
        place = find_place(self._run, stem)
        if place.state is not None:
            try:
                check_fits(place.state, self._cfg, self.resolved, batches())
            except UserError:
                if place.lock is not None:
                    place.lock.close()
                raise
            remove_later_states(place.folder, place.state.step)
        return place

    def _described(self, place: Place, cfg: Config) -> None:
        try:
            describe_run(place.folder, cfg.config)
        except OSError as error:
            self._give_up(place.folder)
            raise UserError(f"{unwritable(place.folder, error)}. {MAKE_ROOM}.") from None

    def _open_log(self) -> None:
        resumed = None if self.state is None else (self.state.log, self.state.step)
        try:
            self.log = RunLog(self.folder, self._run, self.resolved, resumed)
        except UserError:
            self._give_up(self.folder)
            raise

    def _give_up(self, folder: Path) -> None:
        self._leave()
        if self.state is None:
            shutil.rmtree(folder)
