"""The complete state of a run between two steps, and its file.

The file has tensors under ``model.<parameter>``, ``optimizer.<parameter>.<key>`` and
``rank<r>.<name>``, everything else as JSON in its metadata. Frozen weights are not saved; a resumed
run loads them from their original files.
"""

import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavis_ext import distributed
from lavis_ext.checkpoints.tensor_files import (
    DIGEST,
    DamagedTensors,
    read_metadata,
    read_tensors,
    write_tensors,
)
from lavis_ext.checkpoints.trained_weights import renamed
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import parse_json
from lavis_ext.distributed.peers import SAVING
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.retries import Retries, unwritable

FORMAT = "lavis_ext.run_state.2"
KEPT = 2
MAPPINGS = ("progress", "log", "batches", "config", "versions")
PREFIX, SUFFIX = "state_", ".safetensors"


class DamagedState(UserError):
    """Raised for a state file that is truncated, altered or of another format."""


@dataclass(frozen=True)
class RankState:
    """State that differs between ranks.

    Attributes:
        random: states of torch's random generators by name.
        window: metric sums for the next log line by name.
        generators: states of Python's and NumPy's random generators.
    """

    random: Mapping[str, Tensor]
    window: Mapping[str, Tensor]
    generators: dict[str, Any]


@dataclass(frozen=True)
class RunState:
    """State of a run after ``step`` optimizer steps.

    ``step`` is also the position in the data and in the schedule: seed and epoch determine the
    order of an epoch's batches.

    Attributes:
        step: optimizer steps taken, including skipped ones.
        model: trained parameters and the buffers updated in training, by name.
        optimizer: the optimizer's tensors by parameter name.
        ranks: the state of each rank.
        validated_at: step of the last validation; -1 before the first.
        best: best validation value; None before the first validation.
        best_step: step of the best weights; None before the first validation.
        waited: validations since the best one.
        skipped: skipped steps in the whole run.
        skipped_in_a_row: current number of consecutive skipped steps.
        left_out: examples left out because their images couldn't be read.
        progress: times of ``Progress``, in seconds.
        log: position of ``RunLog`` in its files.
        batches: settings that determine batch order, by name.
        config: the run's resolved config.
        versions: package versions by name.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    ranks: list[RankState]
    validated_at: int
    best: float | None
    best_step: int | None
    waited: int
    skipped: int
    skipped_in_a_row: int
    left_out: int
    progress: dict[str, float]
    log: dict[str, Any]
    batches: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the state into ``folder``, then remove all but its last ``KEPT`` states.

        Raises OSError if it can't be written; earlier states are kept.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.items()}
        for name, values in self.optimizer.items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
        for rank, state in enumerate(self.ranks):
            tensors |= {f"rank{rank}.random.{name}": t for name, t in state.random.items()}
            tensors |= {f"rank{rank}.window.{name}": t for name, t in state.window.items()}
        facts = json.dumps(
            {name: getattr(self, name) for name in FACTS}
            | {"generators": [state.generators for state in self.ranks]}
        )
        write_tensors(state_path(folder, self.step), {"format": FORMAT, "facts": facts}, tensors)
        for path in state_paths(folder)[KEPT:]:
            path.unlink()

    def renamed_model(self, old_names: Mapping[str, str]) -> dict[str, Tensor]:
        """``model`` by current parameter names; see ``trained_weights.renamed``."""
        return {renamed(name, old_names): tensor for name, tensor in self.model.items()}

    def renamed_optimizer(self, old_names: Mapping[str, str]) -> dict[str, Mapping[str, Tensor]]:
        """``optimizer`` by current parameter names."""
        return {renamed(name, old_names): tensors for name, tensors in self.optimizer.items()}

    @classmethod
    def load(cls, path: Path) -> "RunState":
        """Read a saved state. Raises DamagedState naming the file if it isn't valid."""
        try:
            metadata, tensors = read_tensors(path)
        except DamagedTensors as error:
            raise DamagedState(f"The state {path} {error}.") from None
        if metadata.get("format") != FORMAT or DIGEST not in metadata:
            raise DamagedState(f"{path} is not a run state of this version of lavis_ext.")
        try:
            return cls._of(parse_json(metadata["facts"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedState(
                f"The state {path} isn't of this version: {shortened(repr(error), 120)}."
            ) from None

    @classmethod
    def _of(cls, facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> "RunState":
        generators = facts.pop("generators")
        if type(facts["step"]) is not int or not all(isinstance(facts[n], dict) for n in MAPPINGS):
            raise TypeError(f"no step, or no {', '.join(MAPPINGS)}")
        parts: dict[str, dict[str, Tensor]] = {"model": {}}
        optimizer: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                parameter, _, key = rest.rpartition(".")
                optimizer.setdefault(parameter, {})[key] = tensor
            else:
                part = part if part == "model" else f"{part}.{rest.partition('.')[0]}"
                parts.setdefault(part, {})[name.removeprefix(f"{part}.")] = tensor
        ranks = [
            RankState(
                parts[f"rank{rank}.random"],
                _with_current_names(parts.get(f"rank{rank}.window", {})),
                values,
            )
            for rank, values in enumerate(generators)
        ]
        return cls(model=parts["model"], optimizer=optimizer, ranks=ranks, **facts)


def _with_current_names(window: dict[str, Tensor]) -> dict[str, Tensor]:
    """``window`` with the number of examples under its current name."""
    return {{"questions": "examples"}.get(name, name): value for name, value in window.items()}


FACTS = tuple(
    name for name in RunState.__dataclass_fields__ if name not in ("model", "optimizer", "ranks")
)


def state_path(folder: Path, step: int) -> Path:
    """Path of a run's state after ``step`` steps."""
    return folder / f"{PREFIX}{step:08d}{SUFFIX}"


def state_paths(folder: Path) -> list[Path]:
    """Paths of the states in a run's folder, newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if _step_of(path) >= 0]
    return sorted(found, key=_step_of, reverse=True)


def newest_state(folder: Path) -> str:
    """File name of the newest state, for messages."""
    paths = state_paths(folder)
    return paths[0].name if paths else "no state"


def best_steps(folder: Path) -> set[int | None]:
    """The ``best_step`` of each readable state in a run's folder, without verifying checksums."""
    found = set()
    for path in state_paths(folder):
        with suppress(DamagedTensors, KeyError, TypeError, ValueError):
            found.add(parse_json(read_metadata(path)["facts"])["best_step"])
    return found


def remove_later_states(folder: Path, step: int) -> None:
    """Remove the states after ``step``, the one that the run resumes from."""
    for path in state_paths(folder):
        if _step_of(path) > step:
            path.unlink()


def _step_of(path: Path) -> int:
    number = path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
    return int(number) if number.isdecimal() else -1


def random_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random states: torch's (CPU and a GPU ``device``) as tensors by name.

    The second mapping has the states of Python's and NumPy's generators as plain values.
    """
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (other code may draw from it)
    return tensors, {"python": random.getstate(), "numpy": [kind, list(map(int, keys)), *rest]}


def set_random_states(
    tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device
) -> None:
    """Restore the states from ``random_states``, also after a round trip through JSON.

    A GPU's state is ignored if ``device`` isn't a GPU.
    """
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(values["numpy"]))  # noqa: NPY002


TrainedTensors = tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]
"""Trained parameters and updated buffers by name; the optimizer's tensors by parameter name."""

Moment = tuple[int, int]
"""Steps taken, and the step of the last validation."""


class StateSaver:
    """Saves a run's state. Every process has an instance; all agree on failures.

    Args:
        run: the section ``run``.
        folder: the run's folder.
    """

    def __init__(self, run: RunConfig, folder: Path) -> None:
        self._run, self._folder = run, folder
        self._saved: Moment = (-1, -1)
        self._time = time.monotonic()
        self._retries = Retries()

    @property
    def failure(self) -> str | None:
        """The error of the last write; None after a success."""
        return self._retries.failure

    def mark_saved(self, moment: Moment) -> None:
        """Record that the state of ``moment`` is on disk."""
        self._saved = moment

    def due(self, step: int) -> bool:
        """Whether this process's clock or step count calls for a save; clocks may disagree."""
        if self._retries.failure is not None:
            return self._retries.due
        minutes, every = self._run.save_every_minutes, self._run.save_every_steps
        late = minutes is not None and time.monotonic() - self._time >= 60 * minutes
        return late or (every is not None and step % every == 0)

    def save(
        self,
        moment: Moment,
        of_rank: Callable[[], RankState],
        of_all: Callable[[], TrainedTensors],
        write: Callable[[list[RankState], TrainedTensors], None],
    ) -> bool:
        """Save the state unless it is on disk already; True if it is there now.

        If it can't be written, the previous one is kept. Called by every process.

        Args:
            moment: steps taken, and the step of the last validation.
            of_rank: returns this process's ``RankState``.
            of_all: returns the main process's tensors; called by every process.
            write: writes the rank states and the tensors; called by the main process only.
        """
        if self._saved == moment:
            return True
        step = moment[0]
        distributed.at(SAVING, step)
        ranks, tensors = distributed.gather([of_rank()]), of_all()

        def written() -> str | None:
            try:
                write(ranks, tensors)
            except OSError as error:
                return unwritable(f"the state of step {step} in {self._folder}", error)
            return None

        if failure := distributed.from_main_process(written):
            kept = newest_state(self._folder)
            self._retries.failed(failure, f"Training continues and retries; {kept} is kept.")
            return False
        self._retries.worked(f"the state of step {step} is saved; the disk is writable again")
        self._saved, self._time = moment, time.monotonic()
        return True
