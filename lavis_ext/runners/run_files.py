"""The folder of a run: its lock, description and files."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import write_json
from lavis_ext.common.locks import Lock
from lavis_ext.config.loader import Config
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.resuming import (
    Place,
    check_config,
    check_fits,
    expected_folder,
    find_evaluation,
    find_place,
)
from lavis_ext.runners.retries import unwritable
from lavis_ext.runners.run_folder import describe_run
from lavis_ext.runners.run_log import RunLog, log
from lavis_ext.runners.saved_steps import EVALUATION, remove_saved_steps, saved_facts
from lavis_ext.runners.state import RunState, newest_state, remove_later_states, state_paths

FREE_SPACE = "Free some disk space, or set another folder with run.output_dir"


class RunFiles:
    """The folder of a new or resumed run under ``run.output_dir``.

    Constructed by all processes together; only the main process writes.

    Args:
        cfg: the run's config.
        stem: prefix of the folder's name if ``run.name`` is null.
        batches: settings that determine batch order, by name; None for an evaluation.

    Attributes:
        folder: path of the folder.
        resolved: the resolved config as plain containers.
        state: the state to resume from; None for a new run.
        log: log of the run's metrics.

    Raises UserError, in every process, if the folder can't be created, written or resumed.
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
            expected = expected_folder(self._run, stem, cfg.read_at)
            place = self._taken(stem, batches)
            self._lock, self.state = place.lock, place.state
            self._described(place, cfg)
            if place.folder != expected:
                log.info("run: %s", place.folder)
            return place.folder, place.path

        self.folder, path = distributed.from_main_process(take)
        if path is not None:
            self.state = distributed.from_shared_file(
                path, lambda path: self.state or RunState.load(path)
            )
        if not distributed.is_main_process():
            self.log = RunLog(None, self._run, self.resolved)
        distributed.from_main_process(self._open_log)

    def may_write(self, path: Path, write: Callable[[], None]) -> None:
        """Write an optional file from the main process; a failure is logged."""
        if not distributed.is_main_process():
            return
        try:
            write()
        except OSError as error:
            log.warning("%s. Training continues without it.", unwritable(path, error))

    def must_write(self, path: Path, write: Callable[[], None]) -> None:
        """Write a required file from the main process. Called by every process.

        Raises UserError, in every process, if it can't be written.
        """

        def checked() -> None:
            try:
                write()
            except OSError as error:
                raise UserError(f"{unwritable(path, error)}. {self.remedy}") from None

        distributed.from_main_process(checked)

    @property
    def remedy(self) -> str:
        """Advice for an error message about an unwritable file."""
        if not self._trains or not state_paths(self.folder):
            return f"{FREE_SPACE}, then start again."
        return (
            f"{newest_state(self.folder)} is intact: free some disk space, then resume from it "
            f"with run.resume={self.folder}."
        )

    def close(self, *, failed: bool = False) -> None:
        """Close the logs and unlock the folder."""
        self.log.close(failed=failed)
        self._leave()

    def _leave(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _taken(self, stem: str, batches: Callable[[], Mapping[str, Any]] | None) -> Place:
        if batches is None:
            return find_evaluation(self._run, stem, self._cfg.read_at)
        place = find_place(self._run, stem, self._cfg.read_at)
        if place.state is not None:
            try:
                check_fits(place.state, self._cfg, self.resolved, batches())
            except UserError:
                if place.lock is not None:
                    place.lock.close()
                raise
            remove_later_states(place.folder, place.state.step)
        return place

    def begin_evaluation(self, facts: Mapping[str, Any]) -> None:
        """Note what is evaluated, before the first batch. Called by every process.

        An interrupted evaluation of the same weights and examples continues. Otherwise the saved
        batches are removed where training goes on, and an evaluation is refused.

        Raises UserError, in every process, for an interrupted evaluation of something else.
        """

        def begun() -> None:
            saved = saved_facts(self.folder)
            if saved is not None:
                differing = [n for n in ("weights", "examples") if saved.get(n) != facts[n]]
                if not self._trains:
                    changed = check_config(saved["config"], self._cfg, self.resolved)
                    for text in changed.values():
                        log.info("changed since the evaluation was interrupted: %s", text)
                if differing and not self._trains:
                    raise UserError(
                        f"run.resume: the evaluation in {self.folder} can't continue, as its "
                        f"{' and '.join(differing)} were others. Restore them, or start a new "
                        "evaluation (run.resume=null, and another run.name)."
                    )
                if not differing:
                    return
                log.info("the interrupted evaluation was of other weights; it starts over")
            path = self.folder / EVALUATION
            if saved is None and path.exists():
                log.warning("%s is damaged or of another version: the evaluation starts over", path)
            remove_saved_steps(self.folder)
            # Without this file hours of saved batches would be of no use.
            self.may_write(path, lambda: write_json(path, dict(facts), flushed=True))

        distributed.from_main_process(begun)

    def _described(self, place: Place, cfg: Config) -> None:
        try:
            describe_run(place.folder, cfg.config)
        except OSError as error:
            self._give_up(place.folder)
            raise UserError(f"{unwritable(place.folder, error)}. {FREE_SPACE}.") from None

    def _open_log(self) -> None:
        resumed = None if self.state is None else (self.state.log, self.state.step)
        try:
            self.log = RunLog(self.folder, self._run, self.resolved, resumed)
        except UserError:
            self._give_up(self.folder)
            raise

    def _give_up(self, folder: Path) -> None:
        self._leave()
        if self.state is None and saved_facts(folder) is None:
            shutil.rmtree(folder)
