"""The folder of a sweep: its description, lock and runs.

``SWEEP/sweep.json`` has what was asked for, ``SWEEP/runs/NAME`` is the folder of a run,
``SWEEP/output/NAME.txt`` what its processes printed, and ``SWEEP/output/NAME.json`` how they ended.
"""

import json
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import read_object, write_json
from lavis_ext.common.locks import Lock
from lavis_ext.config.loader import Config, load_yaml
from lavis_ext.runners.config import AUTO
from lavis_ext.runners.resuming import changed_keys
from lavis_ext.runners.run_folder import CONFIG, METRICS
from lavis_ext.runners.state import state_paths
from lavis_ext.sweep.processes import Job, last_error

DESCRIPTION = "sweep.json"
LOCK = "sweep.lock"
WITHOUT_EFFECT = (
    *("run.output_dir", "run.name", "run.resume", "run.device", "run.num_workers"),
    *("run.log_freq", "run.report", "run.tensorboard", "run.wandb", "run.wandb.*"),
    *("run.save_*", "run.test_splits", "run.watchdog_seconds", "run.data_faults.*"),
    *("run.process_group_timeout_minutes", "run.compile", "run.compile_backend"),
)
"""Keys in which a finished run may differ from what is asked for: they change no result."""
STOPPED = frozenset(
    code
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
    for code in (128 + signum, -signum)
)
"""Exit codes of runs that a signal ended."""


class Status(StrEnum):
    """What has become of a run."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    WAITING = "not started"


@dataclass(frozen=True)
class SweepFolder:
    """Paths of a sweep, and what is known of its runs."""

    path: Path

    @property
    def runs(self) -> Path:
        """Parent of the runs' folders."""
        return self.path / "runs"

    def output(self, name: str) -> Path:
        """File with what a run's processes printed."""
        return self.path / "output" / f"{name}.txt"

    def create(self) -> None:
        """Create the folders. Raises UserError if they can't be."""
        try:
            for folder in (self.runs, self.path / "output"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run.output_dir: can't create {self.path} ({error.strerror}); choose another "
                "folder by --options run.output_dir=FOLDER."
            ) from None

    def lock(self) -> Lock | None:
        """Lock the sweep; None on file systems without locks.

        Raises UserError if another process holds the lock.
        """
        try:
            lock = Lock(self.path / LOCK)
            if lock.taken():
                return lock
        except OSError:
            return None
        raise UserError(
            f"{self.path}: another sweep runs in this folder. Wait for it, stop it, or give this "
            "one its own --name."
        )

    def describe(self, asked: Mapping[str, Any]) -> None:
        """Write what is asked for.

        Raises UserError if the folder has a sweep of other keys or another config.
        """
        saved = self.described()
        for name, what in (("config", "config"), ("keys", "keys")):
            if saved is not None and saved.get(name) != asked[name]:
                raise UserError(
                    f"{self.path} has a sweep of the {what} {_words(saved.get(name))}, not "
                    f"{_words(asked[name])}. Give this one its own --name."
                )
        write_json(self.path / DESCRIPTION, dict(asked))

    def described(self) -> dict[str, Any] | None:
        """What was asked for when the sweep was last started; None for a new one."""
        return read_object(self.path / DESCRIPTION)

    def job(self, name: str, options: list[str]) -> Job:
        """The job of a run, which resumes what there is of it."""
        own = [f"run.output_dir={self.runs}", f"run.name={name}", f"run.resume={AUTO}"]
        return Job(name, [*options, *own], self.output(name))

    def note_start(self, name: str) -> None:
        """Note that a run's processes have started."""
        self._note(name, None, "")

    def note_end(self, name: str, code: int) -> None:
        """Note a run's exit code and, if it failed, its last error."""
        error = "" if code == 0 or code in STOPPED else last_error(self.output(name))
        self._note(name, code, error)

    def note_killed(self, names: Iterable[str]) -> None:
        """Note the end of runs that a killed sweep has left; called with the sweep locked."""
        for name in names:
            if self.status(name)[0] is Status.RUNNING:
                self._note(name, -signal.SIGKILL, "")

    def status(self, name: str) -> tuple[Status, str]:
        """Status of a run, with the last error of a failed one."""
        folder = self.runs / name
        if (folder / METRICS).is_file():
            return Status.FINISHED, ""
        noted = read_object(self._notes(name))
        if noted is None:
            return (Status.INTERRUPTED if state_paths(folder) else Status.WAITING), ""
        code = noted.get("code")
        if code is None:
            return Status.RUNNING, ""
        if code in STOPPED:
            return Status.INTERRUPTED, ""
        return Status.FAILED, str(noted.get("error") or f"exit code {code}")

    def check_unchanged(self, name: str, cfg: Config) -> None:
        """Raise UserError for a finished run whose config differs from ``cfg`` in its results.

        Runs that aren't finished are checked when they resume.
        """
        path = self.runs / name / CONFIG
        if self.status(name)[0] is not Status.FINISHED or not path.is_file():
            return
        saved = cast(dict[str, Any], OmegaConf.to_container(load_yaml(path)))
        now = cast(dict[str, Any], OmegaConf.to_container(cfg.config))
        before = cfg.upgraded(saved)
        if now["run"]["metric"] is None:  # settled when the run starts, as is the next
            now["run"]["metric"] = before["run"].get("metric")
        if now["run"]["batch_size_train"] == AUTO:
            now["run"]["batch_size_train"] = before["run"].get("batch_size_train")
        differing = [
            text
            for key, text in changed_keys(before, now).items()
            if not any(fnmatchcase(key, pattern) for pattern in WITHOUT_EFFECT)
        ]
        if differing:
            raise UserError(
                f"{path.parent} finished with another config:\n  " + "\n  ".join(differing) + "\n"
                "Change these back, remove that folder to repeat the run, or give this sweep its "
                "own --name."
            )

    def _note(self, name: str, code: int | None, error: str) -> None:
        with suppress(OSError):  # a full disk; the run's own files tell most of it
            write_json(self._notes(name), {"code": code, "error": error})

    def _notes(self, name: str) -> Path:
        return self.path / "output" / f"{name}.json"


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else json.dumps(value)
