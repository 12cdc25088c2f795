"""The file of a model's trained weights, and all that is needed to use them again."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lavis_ext.checkpoints.sources import PACKAGED, resolve
from lavis_ext.checkpoints.tensor_files import (
    DIGEST,
    DamagedTensors,
    read_metadata,
    read_tensors,
    write_tensors,
)
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import is_file, parse_json
from lavis_ext.common.version import __version__

FORMAT = "lavis_ext.weights.2"
FORMAT_1 = "lavis_ext.fusion_weights.1"
"""Of versions up to 0.1, whose one fact beside the config was the vocabulary."""
FACTS = "lavis_ext"
"""What isn't a tensor, in the metadata."""
KINDS = {"metric": str | None, "value": int | float | None, "step": int}
"""Facts beside the config and the model's own."""
MOST_LEVELS = 20
"""Of a config; those of this library have six."""


@dataclass(frozen=True)
class TrainedWeights:
    """Weights with the run that trained them.

    Attributes:
        state: tensors by parameter name.
        config: the run's resolved config.
        metric: name of the validation metric that selected them; None without validation.
        value: the metric's value.
        step: optimizer steps of training.
        facts: what the model itself adds, as JSON (``TrainableModel.exported_facts``).
    """

    state: Mapping[str, torch.Tensor]
    config: dict[str, Any]
    metric: str | None
    value: float | None
    step: int
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a file of tensors; the rest goes into its metadata as JSON.

        Raises OSError where it can't be written; what was there before then stands.
        """
        told = {
            "config": self.config,
            "facts": self.facts,
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "lavis_ext": __version__,
        }
        write_tensors(path, {"format": FORMAT, FACTS: json.dumps(told)}, self.state)

    def renamed(self, old_names: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """The tensors by today's names. ``old_names`` are patterns (``re``) with replacements."""
        return {renamed(name, old_names): tensor for name, tensor in self.state.items()}

    @classmethod
    def load(
        cls, source: str | Path, *, key: str = "model.weights", tensors: bool = True
    ) -> "TrainedWeights":
        """Read what ``save`` wrote; without ``tensors`` only the rest.

        ``source`` is a path, or ``packaged:`` and the path of a file of this package; ``key`` is
        the config's, for errors. Raises UserError naming the file if it is missing, damaged, or of
        another kind.
        """
        path = Path(source)
        if str(source).startswith(PACKAGED):
            path = resolve(str(source), key=key)
        if not is_file(path):
            raise UserError(
                f"{key}: there is no file {shortened(str(path), 300)}. Training writes "
                "*_best.safetensors into the run's folder."
            )
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
                f"{key}: {path} holds no trained weights of this library; expected a file that "
                "training wrote, such as fusion_encoder_best.safetensors."
            )
        # What was written before there were checksums has none; a damaged name of one isn't that.
        if not metadata.keys() <= {"format", FACTS, DIGEST} or FACTS not in metadata:
            raise UserError(f"{key}: {path} is damaged; copy or train it again.")
        try:
            return cls(state=state, **_told(parse_json(metadata[FACTS]), metadata["format"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{key}: {path} is damaged: what it says of its run can't be used "
                f"({shortened(repr(error), 120)})."
            ) from None


def renamed(name: str, old_names: Mapping[str, str]) -> str:
    """A parameter's name of today. ``old_names`` are patterns (``re``) with replacements."""
    for pattern, new in old_names.items():
        name = re.sub(pattern, new, name)
    return name


def _told(told: Any, kind: str) -> dict[str, Any]:
    """What a file says beside its tensors. Raises KeyError, TypeError and ValueError."""
    config = told["config"]
    facts = told["facts"] if kind == FORMAT else {"vocabulary": told["vocabulary"]}
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise TypeError("no config of a run")
    if not isinstance(facts, dict):
        raise TypeError("facts of another kind")
    _refuse_references(config)
    if not all(isinstance(told[name], kind) for name, kind in KINDS.items()):
        raise TypeError(f"{', '.join(KINDS)} of another kind")
    return {"config": config, "facts": facts, **{name: told[name] for name in KINDS}}


def _refuse_references(config: Any, depth: int = 0) -> None:
    """Refuse what a config's reader would put other values in place of, such as the environment's.

    A run's config is resolved when it is saved, so there is nothing of the kind in it.
    """
    if depth > MOST_LEVELS:
        raise ValueError("a config nested too deeply")
    if isinstance(config, dict | list):
        for each in [*config, *config.values()] if isinstance(config, dict) else config:
            _refuse_references(each, depth + 1)
    elif isinstance(config, str) and ("${" in config or config == "???"):
        raise ValueError(f"its config refers to something outside of it: {config}")
