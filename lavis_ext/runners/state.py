"""The complete state of a run between two steps, and the file that it is saved to.

The file has tensors under ``model.<parameter>``, ``optimizer.<parameter>.<key>`` and
``rank<r>.<name>``, everything else as JSON in its metadata. Frozen weights are not in it: they
come from where the run took them.
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
    """A file that isn't the state that was written."""


@dataclass(frozen=True)
class RankState:
    """State that differs between ranks.

    Attributes:
        random: states of torch's random numbers by name.
        window: sums for the next line of the log by name.
        generators: states of Python's and NumPy's random numbers.
    """

    random: Mapping[str, Tensor]
    window: Mapping[str, Tensor]
    generators: dict[str, Any]


@dataclass(frozen=True)
class RunState:
    """A run after ``step`` optimizer steps.

    The position in the data is the number of steps, because the order of an epoch's batches follows
    from seed and epoch. So is the schedule's.

    Attributes:
        step: optimizer steps, skipped ones counted in.
        model: trained parameters, and buffers that change with them, by name.
        optimizer: the optimizer's tensors by parameter.
        ranks: one for each process.
        validated_at: the step of the last validation; -1 before the first.
        best: value of the best validation; None before the first.
        best_step: the step that the run's best weights are of; None before there are any.
        waited: validations since the best.
        skipped: skipped steps of the run.
        skipped_in_a_row: those since the last step that wasn't.
        left_out: examples left out of the run, because their images couldn't be read.
        progress: times in seconds, of ``Progress``.
        log: where the log stands, of ``RunLog``.
        batches: what the order of the batches depends on, by name.
        config: the run's resolved config.
        versions: of packages by name.
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
        """Write the state into ``folder``, then remove all but the last ``KEPT`` in it.

        Raises OSError where it can't be written; those before it then stand as they did.
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
        """``model`` by today's parameter names; see ``trained_weights.renamed``."""
        return {renamed(name, old_names): tensor for name, tensor in self.model.items()}

    def renamed_optimizer(self, old_names: Mapping[str, str]) -> dict[str, Mapping[str, Tensor]]:
        """``optimizer`` by today's parameter names."""
        return {renamed(name, old_names): tensors for name, tensors in self.optimizer.items()}

    @classmethod
    def load(cls, path: Path) -> "RunState":
        """Read what ``save`` wrote. Raises DamagedState naming the file for any other bytes."""
        try:
            metadata, tensors = read_tensors(path)
        except DamagedTensors as error:
            raise DamagedState(f"The state {path} {error}.") from None
        if metadata.get("format") != FORMAT or DIGEST not in metadata:
            raise DamagedState(f"{path} holds no state of a run of this version of lavis_ext.")
        try:
            return cls._of(parse_json(metadata["facts"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedState(
                f"The state {path} isn't one of this version: {shortened(repr(error), 120)}."
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
                _of_today(parts.get(f"rank{rank}.window", {})),
                values,
            )
            for rank, values in enumerate(generators)
        ]
        return cls(model=parts["model"], optimizer=optimizer, ranks=ranks, **facts)


def _of_today(window: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums with the number of examples under its name of today."""
    return {{"questions": "examples"}.get(name, name): value for name, value in window.items()}


FACTS = tuple(
    name for name in RunState.__dataclass_fields__ if name not in ("model", "optimizer", "ranks")
)


def state_path(folder: Path, step: int) -> Path:
    """The file of a run's state after so many steps."""
    return folder / f"{PREFIX}{step:08d}{SUFFIX}"


def state_paths(folder: Path) -> list[Path]:
    """The files of states in a run's folder, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if _step_of(path) >= 0]
    return sorted(found, key=_step_of, reverse=True)


def newest_state(folder: Path) -> str:
    """The name of the newest state's file, for messages."""
    paths = state_paths(folder)
    return paths[0].name if paths else "no state"


def best_steps(folder: Path) -> set[int | None]:
    """The ``best_step`` of each state in a run's folder that can be read, unchecked."""
    found = set()
    for path in state_paths(folder):
        with suppress(DamagedTensors, KeyError, TypeError, ValueError):
            found.add(parse_json(read_metadata(path)["facts"])["best_step"])
    return found


def remove_later_states(folder: Path, step: int) -> None:
    """Remove the states of a run that came after ``step``, from which it goes on."""
    for path in state_paths(folder):
        if _step_of(path) > step:
            path.unlink()


def _step_of(path: Path) -> int:
    number = path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
    return int(number) if number.isdecimal() else -1


def random_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch (CPU and, where it is a GPU, ``device``) as tensors by name.

    With them, as plain values, the states of Python's and NumPy's generators.
    """
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (others may draw from it)
    return tensors, {"python": random.getstate(), "numpy": [kind, list(map(int, keys)), *rest]}


def set_random_states(
    tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device
) -> None:
    """Put back what ``random_states`` gave, also after the values were JSON.

    A state of a GPU is left aside where ``device`` is none.
    """
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(values["numpy"]))  # noqa: NPY002


Moment = tuple[int, int]
"""The steps that a run has taken, and the step of its last validation."""


class StateSaver:
    """Saves a run's state. Every process has one, and all know what has failed.

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
                return unwritable(f"the state of step {step} in {self._folder}", error)
            return None

        if failure := distributed.from_main_process(written):
            standing = newest_state(self._folder)
            self._retries.failed(failure, f"Training goes on and tries again; {standing} stands.")
            return False
        self._retries.worked(f"the state of step {step} is saved: it can be written again")
        self._saved, self._time = moment, time.monotonic()
        return True
