"""``run.resume``: which run goes on, from which state, and whether its config still fits."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import remove_leftovers
from lavis_ext.common.locks import Lock
from lavis_ext.config.loader import Config
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.run_folder import LOCK, METRICS, make_run_folder
from lavis_ext.runners.run_log import log
from lavis_ext.runners.state import DamagedState, RunState, state_paths

PATIENCE_SECONDS = 20.0
"""How long processes that were told to end may take with a run that is to go on."""


@dataclass(frozen=True)
class Place:
    """Where a run's files go.

    Attributes:
        folder: the run's folder.
        path: the file of the state that it goes on from; None for a run that starts.
        state: what is in it.
        lock: held as long as the run's process lives; None on file systems without locks.
    """

    folder: Path
    path: Path | None
    state: RunState | None
    lock: Lock | None


def find_place(run: RunConfig, stem: str) -> Place:
    """The folder of a run, made if it is a new one, and the state that it goes on from.

    ``stem`` begins the names of its config's folders. With ``run.resume: auto`` that is the folder
    ``run.name`` or, without a name, the newest one of this config that has a state, has not ended,
    and that no process writes to; where there is none, the run starts. A path is a run's folder or
    a state.

    Raises UserError where the path has no sound state, where another process writes to the folder,
    and for a name that is taken by a run which is not to be resumed.
    """
    output = Path(run.output_dir)
    if run.resume is None:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
            raise UserError(
                "torchrun --max-restarts starts the processes anew after a fault, and they would "
                "start from the first step; set run.resume=auto, best with a run.name."
            )
        return _started(make_run_folder(output, stem, run.name))
    if run.resume != "auto":
        return _of_path(Path(run.resume))
    if run.name is not None:
        folder = output / run.name
        if not folder.is_dir():
            return _started(make_run_folder(output, stem, run.name))
        return _of_folder(folder) if state_paths(folder) else _started(folder, PATIENCE_SECONDS)
    for folder in _unfinished(output, stem):
        try:
            lock = _taken(folder, 0)
        except UserError:  # it is alive
            continue
        path, state = newest_sound(folder)
        if state is not None:
            return Place(folder, path, state, lock)
        if lock:
            lock.close()
    log.info("run.resume: %s has no run of %s to go on with; this one starts", output, stem)
    return _started(make_run_folder(output, stem, None))


def expected_folder(run: RunConfig, stem: str) -> Path:
    """The folder that ``find_place`` would find; or, of one to be named by it, that it lies in."""
    output = Path(run.output_dir)
    if run.resume not in (None, "auto"):
        path = Path(run.resume)
        return path if path.is_dir() else path.parent
    if run.name is not None:
        return output / run.name
    return next(_unfinished(output, stem), output) if run.resume else output


def newest_sound(folder: Path) -> tuple[Path | None, RunState | None]:
    """The newest state of a run that can be read; a warning for each that can't."""
    for path in state_paths(folder):
        try:
            return path, RunState.load(path)
        except DamagedState as error:
            log.warning("%s It is left out for the one before it.", error)
    return None, None


def check_fits(
    state: RunState, cfg: Config, config: Mapping[str, Any], batches: Mapping[str, Any]
) -> None:
    """Compare the config and data of a run with those that its state was saved under.

    ``cfg`` knows which keys may change, ``config`` is it as plain containers. Logs what has changed
    and may. Raises UserError that lists what can't.
    """
    saved, now = dict(_flat(cfg.upgraded(state.config))), dict(_flat(config))
    may_change = cfg.changeable_keys()
    changed = {
        key: f"{key}: {_shown(saved, key)} when saved, now {_shown(now, key)}"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)  # a key that one of them lacks is null there
    }
    fixed = [text for key, text in changed.items() if not _may_change(key, may_change)]
    if fixed:
        raise UserError(
            "run.resume: the saved run can't go on with this config:\n  "
            + "\n  ".join(fixed)
            + "\nSet these back, or start a new run (run.resume=null)."
        )
    if state.batches.get("layout") != batches["layout"]:
        differing = [
            f"{name}: {_shown(state.batches, name)} when saved, now {batches[name]}"
            for name in batches
            if name != "layout" and state.batches.get(name) != batches[name]
        ]
        raise UserError(
            "run.resume: the batches of an epoch would not be those of the saved run, so that "
            "questions would be repeated or left out:\n  "
            + "\n  ".join(differing or ["the data set's questions or images are others"])
            + "\nStart as many processes as before, or set run.batch_size_train so that a batch of "
            "all processes has as many questions as before; the data must be the same."
        )
    for text in changed.values():
        log.info("changed since the state was saved: %s", text)


def _started(folder: Path, patience: float = 0) -> Place:
    return Place(folder, None, None, _taken(folder, patience))


def _of_path(path: Path) -> Place:
    if not path.exists():
        raise UserError(
            f"run.resume is '{path}', which doesn't exist; give the folder of a run, one of its "
            "states (state_*.safetensors), or auto."
        )
    if path.is_dir():
        return _of_folder(path)
    state = RunState.load(path)
    return Place(path.parent, path, state, _taken(path.parent, PATIENCE_SECONDS))


def _of_folder(folder: Path) -> Place:
    """The run in a folder. Waits for its processes of before, which may still write a state."""
    lock = _taken(folder, PATIENCE_SECONDS) if state_paths(folder) else None
    newest, state = newest_sound(folder)
    if state is None:
        if lock:
            lock.close()
        raise UserError(
            f"run.resume: there is no sound state (state_*.safetensors) in {folder}. To start this "
            "run anew, remove the folder."
        )
    return Place(folder, newest, state, lock)


def _unfinished(output: Path, stem: str) -> Iterator[Path]:
    """Folders of this config's runs that have states and have not ended, the newest first."""
    found = []
    for folder in output.glob(f"{escape(stem)}-[0-9]*-[0-9]*"):
        states = state_paths(folder)
        if states and not (folder / METRICS).exists():
            found.append((states[0].stat().st_mtime, folder))
    return (folder for _, folder in sorted(found, reverse=True))


def _taken(folder: Path, seconds: float) -> Lock | None:
    """The lock of a run's folder, which is then tidied up."""
    try:
        lock = Lock(folder / LOCK)
        deadline = time.monotonic() + seconds
        while not lock.taken():
            if time.monotonic() >= deadline:
                raise UserError(
                    f"run.resume: another process writes to {folder}. End it first, or give this "
                    "run a run.name of its own."
                )
    except OSError:  # no locks on this file system
        return None
    remove_leftovers(folder)
    return lock


def _may_change(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their full keys; a list is a leaf."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
