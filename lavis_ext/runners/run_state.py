"""All that a run is, between two steps, and the file that it is kept in.

It has tensors under ``model.<parameter>``, ``optimizer.<parameter>.<key>`` and ``rank<r>.<name>``,
everything else as JSON in its metadata. Frozen weights are not in it: they come from where the run
took them.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lavis_ext.checkpoints.tensor_files import (
    DIGEST,
    DamagedTensors,
    read_metadata,
    read_tensors,
    write_tensors,
)
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import parse_json

FORMAT = "lavis_ext.run_state.2"
KEPT = 2
MAPPINGS = ("progress", "log", "batches", "config", "versions")
PREFIX, SUFFIX = "state_", ".safetensors"


class DamagedState(UserError):
    """A file that isn't the state that was written."""


@dataclass(frozen=True)
class RankState:
    """What differs between the processes of a run.

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
        left_out: questions left out of the run, because their images couldn't be read.
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
            RankState(parts[f"rank{rank}.random"], parts.get(f"rank{rank}.window", {}), values)
            for rank, values in enumerate(generators)
        ]
        return cls(model=parts["model"], optimizer=optimizer, ranks=ranks, **facts)


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
