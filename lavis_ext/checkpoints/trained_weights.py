"""Files of trained weights, with the config and facts needed to use them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lavis_ext.checkpoints.sources import PACKAGED, is_hub_name, resolve
from lavis_ext.checkpoints.tensor_files import (
    DIGEST,
    DamagedTensors,
    read_metadata,
    read_tensors,
    write_tensors,
)
from lavis_ext.common.addresses import is_address
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import is_file, parse_json
from lavis_ext.common.version import __version__

FORMAT = "lavis_ext.weights.2"
FORMAT_1 = "lavis_ext.fusion_weights.1"
"""Format of versions up to 0.1, which had the vocabulary in place of ``facts``."""
FACTS = "lavis_ext"
"""Metadata key of everything that isn't a tensor."""
KINDS = {"metric": str | None, "value": int | float | None, "step": int}
"""Types of the entries beside ``config`` and ``facts``."""
ON_HUB = "model.safetensors"
"""Name of the file in a repository on the Hugging Face hub."""
MOST_LEVELS = 20
"""Maximum nesting of a config; those of this library have six levels."""


@dataclass(frozen=True)
class TrainedWeights:
    """Trained weights and a description of the run that trained them.

    Attributes:
        state: tensors by parameter name.
        config: the run's resolved config.
        metric: validation metric that selected the weights; None without validation.
        value: the metric's value.
        step: optimizer steps of training.
        facts: the model's additions, as JSON (``TrainableModel.exported_facts``).
    """

    state: Mapping[str, torch.Tensor]
    config: dict[str, Any]
    metric: str | None
    value: float | None
    step: int
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the tensors to a file, everything else to its metadata as JSON.

        Raises OSError if that fails; an existing file is then unchanged.
        """
        description = {
            "config": self.config,
            "facts": self.facts,
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "lavis_ext": __version__,
        }
        write_tensors(path, {"format": FORMAT, FACTS: json.dumps(description)}, self.state)

    def renamed(self, old_names: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Tensors under current names. ``old_names`` maps patterns (``re``) to replacements."""
        return {renamed(name, old_names): tensor for name, tensor in self.state.items()}

    @classmethod
    def load(
        cls, source: str | Path, *, key: str = "model.weights", tensors: bool = True
    ) -> "TrainedWeights":
        """Read a file written by ``save``; without ``tensors`` only its metadata.

        ``source`` and ``key`` are as in ``find_trained_weights``. Raises UserError naming the file
        if it is missing, damaged or of another format.
        """
        path = find_trained_weights(source, key)
        state: dict[str, torch.Tensor] = {}
        try:
            if tensors:
                metadata, state = read_tensors(path)
            else:
                metadata = read_metadata(path)
        except DamagedTensors as error:
            raise UserError(f"{key}: {path} {error}; copy or train it again.") from None
        if metadata.get("format") not in (FORMAT, FORMAT_1):
            raise UserError(
                f"{key}: {path} has no trained weights of lavis_ext; expected a file written by "
                "training, such as fusion_encoder_best.safetensors."
            )
        # Early versions wrote no checksum; a checksum under a damaged name is an unknown key.
        if not metadata.keys() <= {"format", FACTS, DIGEST} or FACTS not in metadata:
            raise UserError(f"{key}: {path} is damaged; copy or train it again.")
        try:
            return cls(state=state, **_fields_of(parse_json(metadata[FACTS]), metadata["format"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{key}: {path} is damaged: its training record can't be used "
                f"({shortened(repr(error), 120)})."
            ) from None


def find_trained_weights(source: str | Path, key: str) -> Path:
    """The file of trained weights, downloaded on first use if it is elsewhere.

    Args:
        source: a path, ``packaged:`` and the path of a file in this package, an address, or
            OWNER/NAME of a repository on the hub with the file ``ON_HUB``, with ``@COMMIT`` to pin
            it.
        key: config key of ``source``, for errors.

    Raises UserError for a missing file.
    """
    path, name = Path(source), str(source)
    is_elsewhere = is_address(name) or ("/" in name and is_hub_name(name))
    if name.startswith(PACKAGED) or is_elsewhere:
        path = resolve(name, key=key, filenames=(ON_HUB,))
    if not is_file(path):
        raise UserError(
            f"{key}: there is no file {shortened(str(path), 300)}. Training writes "
            "*_best.safetensors to the run's folder."
        )
    return path


def renamed(name: str, old_names: Mapping[str, str]) -> str:
    """Current name of a parameter. ``old_names`` maps patterns (``re``) to replacements."""
    for pattern, new in old_names.items():
        name = re.sub(pattern, new, name)
    return name


def _fields_of(description: Any, kind: str) -> dict[str, Any]:
    """Fields of TrainedWeights from a file's metadata. Raises KeyError, TypeError, ValueError."""
    config = description["config"]
    facts = description["facts"] if kind == FORMAT else {"vocabulary": description["vocabulary"]}
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise TypeError("it has no config")
    if not isinstance(facts, dict):
        raise TypeError("facts of another type")
    _check_no_references(config)
    if not all(isinstance(description[name], kind) for name, kind in KINDS.items()):
        raise TypeError(f"{', '.join(KINDS)} of another type")
    return {"config": config, "facts": facts, **{name: description[name] for name in KINDS}}


def _check_no_references(config: Any, depth: int = 0) -> None:
    """Raise ValueError for interpolations, which could read environment variables into the config.

    Saved configs are resolved, so a valid one has none.
    """
    if depth > MOST_LEVELS:
        raise ValueError("its config is nested too deeply")
    if isinstance(config, dict | list):
        for each in [*config, *config.values()] if isinstance(config, dict) else config:
            _check_no_references(each, depth + 1)
    elif isinstance(config, str) and ("${" in config or config == "???"):
        raise ValueError(f"its config has an unresolved reference: {config}")
