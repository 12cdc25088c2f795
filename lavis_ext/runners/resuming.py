"""``run.resume``: find the run and state to continue from, and check its config."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import remove_leftovers
from lavis_ext.common.locks import Lock
from lavis_ext.config.loader import Config, load_yaml
from lavis_ext.runners.config import AUTO, RunConfig
from lavis_ext.runners.run_folder import CONFIG, LOCK, METRICS, default_name, make_run_folder
from lavis_ext.runners.run_log import log
from lavis_ext.runners.saved_steps import EVALUATION
from lavis_ext.runners.state import DamagedState, RunState, state_paths

GLOBAL_BATCH = "examples a batch of all processes"
"""Entry of a state's ``batches``."""
IMAGES_PER_BATCH = "run.images_per_batch"
OLD_KEY = "run.sample_by"
OLD_SAMPLE = f"\n  {OLD_KEY}: older samples drew single examples; set it to examples"
PATIENCE_SECONDS = 20.0
"""Grace period in which the earlier processes of a resumed run may exit."""


@dataclass(frozen=True)
class Place:
    """Where a run's files go.

    Attributes:
        folder: the folder of the run.
        path: path of the state to resume from; None for a new run.
        state: the state read from ``path``.
        lock: held while the run's process lives; None on file systems without locks.
    """

    folder: Path
    path: Path | None
    state: RunState | None
    lock: Lock | None


def find_place(run: RunConfig, stem: str, when: float) -> Place:
    """The folder of a run, created for a new one, and the state to resume from.

    ``stem`` is the prefix of this config's run folders, ``when`` the time of the run's start, of
    which a new one's name is made. ``run.resume: auto`` resumes the folder
    ``run.name`` or, without a name, this config's newest unfinished run that has a state and isn't
    in use; if there is none, a new run starts. A path is a run's folder or a state.

    Raises UserError if the path has no valid state, if another process writes to the folder, or if
    the name belongs to an existing run and ``run.resume`` is null.
    """
    output = Path(run.output_dir)
    if run.resume is None:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
            raise UserError(
                "torchrun --max-restarts restarts the processes after a failure, and without "
                "run.resume they would start from step 0; set run.resume=auto, preferably with a "
                "run.name."
            )
        return _started(make_run_folder(output, stem, run.name, when))
    if run.resume != AUTO:
        return _of_path(Path(run.resume))
    if run.name is not None:
        folder = output / run.name
        if not folder.is_dir():
            return _started(make_run_folder(output, stem, run.name, when))
        return _of_folder(folder) if state_paths(folder) else _started(folder, PATIENCE_SECONDS)
    for folder in _unfinished(output, stem, state_paths):
        try:
            lock = _taken(folder, 0)
        except UserError:  # still running
            continue
        path, state = newest_sound(folder)
        if state is not None:
            return Place(folder, path, state, lock)
        if lock:
            lock.close()
    log.info("run.resume: %s has no unfinished run of %s; starting a new one", output, stem)
    return _started(make_run_folder(output, stem, None, when))


def expected_folder(run: RunConfig, stem: str, when: float) -> Path:
    """The folder that ``find_place`` would return.

    The name is another if a run of the same second takes it, or if a run to resume turns out to be
    damaged or in use.
    """
    output = Path(run.output_dir)
    if run.resume not in (None, AUTO):
        path = Path(run.resume)
        return path if path.is_dir() else path.parent
    if run.name is not None:
        return output / run.name
    new = output / default_name(stem, when)
    return next(_unfinished(output, stem, state_paths), new) if run.resume else new


def saved_run_option(run: RunConfig, stem: str, name: str) -> Any:
    """``run.NAME`` in the config of the run that is resumed; None for a new run."""
    folder = expected_folder(run, stem, time.time())
    if run.resume is None or not state_paths(folder) or not (folder / CONFIG).is_file():
        return None
    return OmegaConf.select(load_yaml(folder / CONFIG), f"run.{name}")


def newest_sound(folder: Path) -> tuple[Path | None, RunState | None]:
    """The newest readable state of a run; warns of each unreadable one."""
    for path in state_paths(folder):
        try:
            return path, RunState.load(path)
        except DamagedState as error:
            log.warning("%s Falling back to the previous state.", error)
    return None, None


def check_fits(
    state: RunState, cfg: Config, config: Mapping[str, Any], batches: Mapping[str, Any]
) -> None:
    """Check that config and data match those of the saved state.

    ``cfg`` declares the keys that may change; ``config`` is its content as plain containers. Logs
    allowed changes and raises UserError listing the others.
    """
    drew_examples = OLD_KEY not in dict(_flat(state.config))
    changed = check_config(state.config, cfg, config)
    if state.batches.get("layout") != batches["layout"]:
        differing = [
            f"{name}: {_shown(state.batches, name)} when saved, now {batches[name]}"
            for name in batches
            if name != "layout" and state.batches.get(name) != batches[name]
        ]
        raise UserError(
            "run.resume: the batches of an epoch would differ from the saved run's, so examples "
            "would be repeated or left out:\n  "
            + "\n  ".join(differing or ["the data set's examples or images differ"])
            + (OLD_SAMPLE if cfg.run.small_train_size and drew_examples else "")
            + f"\n{_remedy(state.batches, batches, changed)}"
        )
    for text in changed.values():
        log.info("changed since the state was saved: %s", text)


def check_config(saved: dict[str, Any], cfg: Config, config: Mapping[str, Any]) -> dict[str, str]:
    """Allowed changes between a saved config and this one, described by key.

    Raises UserError listing the others. For the arguments see ``check_fits``.
    """
    changed = changed_keys(cfg.upgraded(saved), config)
    may_change = cfg.changeable_keys()
    fixed = [text for key, text in changed.items() if not _may_change(key, may_change)]
    if fixed:
        raise UserError(
            "run.resume: the saved run can't continue with this config:\n  "
            + "\n  ".join(fixed)
            + "\nChange these back, or start a new run (run.resume=null)."
        )
    return changed


def changed_keys(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Differences between two resolved configs, described by key."""
    before, now = dict(_flat(saved)), dict(_flat(config))
    return {
        key: f"{key}: {_shown(before, key)} when saved, now {_shown(now, key)}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)  # a missing key counts as null
    }


def find_evaluation(run: RunConfig, stem: str, when: float) -> Place:
    """The folder of an evaluation, created for a new one; see ``find_place``.

    Raises UserError if ``run.resume`` names no interrupted evaluation, or if another process writes
    to its folder.
    """
    output = Path(run.output_dir)
    if run.resume is None or (run.resume == AUTO and run.name and not (output / run.name).is_dir()):
        return _started(make_run_folder(output, stem, run.name, when))
    if run.resume == AUTO and run.name is None:
        for folder in _unfinished(output, stem, lambda folder: [*folder.glob(EVALUATION)]):
            with suppress(UserError):  # still running
                return _started(folder)
        log.info("run.resume: %s has no unfinished evaluation of %s; starting one", output, stem)
        return _started(make_run_folder(output, stem, None, when))
    folder = output / run.name if run.name and run.resume == AUTO else Path(run.resume)
    if (folder / METRICS).exists():
        raise UserError(
            f"run.resume: the evaluation in {folder} is finished. For another one, choose another "
            "run.name."
        )
    if run.resume != AUTO and not (folder / EVALUATION).is_file():
        raise UserError(
            f"run.resume: {folder} has no interrupted evaluation ({EVALUATION}). Give the folder "
            "of one, or auto."
        )
    return _started(folder, PATIENCE_SECONDS)


def _remedy(saved: Mapping[str, Any], now: Mapping[str, Any], changed: Mapping[str, str]) -> str:
    """How to get a saved run's batches again. ``changed`` describes the config's changes by key."""
    processes, total = saved.get("processes"), saved.get(GLOBAL_BATCH)
    if total != now[GLOBAL_BATCH] or not isinstance(processes, int):
        return (
            "Use the same data and number of processes as before, or set run.batch_size_train so "
            "that its product with the number of processes stays the same."
        )
    if IMAGES_PER_BATCH in changed:
        return f"{changed[IMAGES_PER_BATCH]}: change it back."
    if processes == now["processes"] or saved.get("examples") != now["examples"]:
        return "Use the same data as before."
    return (
        f"A batch has as many examples as before, but images are shared out among {processes} "
        f"processes in other groups than among {now['processes']}; use {processes} processes "
        f"with run.batch_size_train={total // processes} again."
    )


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
    """The run in ``folder``, once its earlier processes have exited."""
    lock = _taken(folder, PATIENCE_SECONDS) if state_paths(folder) else None
    newest, state = newest_sound(folder)
    if state is None:
        if lock:
            lock.close()
        raise UserError(
            f"run.resume: there is no intact state (state_*.safetensors) in {folder}. To start "
            "over, remove the folder."
        )
    return Place(folder, newest, state, lock)


def _unfinished(
    output: Path, stem: str, states_of: Callable[[Path], Sequence[Path]]
) -> Iterator[Path]:
    """Folders of this config's unfinished runs with states, newest first."""
    found = []
    for folder in output.glob(f"{escape(stem)}-[0-9]*-[0-9]*"):
        states = states_of(folder)
        if states and not (folder / METRICS).exists():
            found.append((states[0].stat().st_mtime, folder))
    return (folder for _, folder in sorted(found, reverse=True))


def _taken(folder: Path, seconds: float) -> Lock | None:
    """Lock a run's folder and remove its leftovers."""
    try:
        lock = Lock(folder / LOCK)
        deadline = time.monotonic() + seconds
        while not lock.taken():
            if time.monotonic() >= deadline:
                raise UserError(
                    f"run.resume: another process writes to {folder}. Stop it first, or give this "
                    "run its own run.name."
                )
    except OSError:  # no locks on this file system
        return None
    remove_leftovers(folder)
    return lock


def _may_change(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted key; a list is a leaf."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return "nothing" if key not in values else "null" if values[key] is None else repr(values[key])
