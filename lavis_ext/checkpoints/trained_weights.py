"""The file of a trained fusion network: its weights, and all that is needed to use them again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary

FORMAT = "lavis_ext.fusion_weights.1"
FACTS = "lavis_ext"
"""What isn't a tensor, in the metadata."""
KINDS = {"metric": str | None, "value": int | float | None, "step": int}
"""Facts beside the config and the vocabulary."""
MOST_LEVELS = 20
"""Of a config; those of this library have six."""


@dataclass(frozen=True)
class FusionWeights:
    """Weights with what they were trained as.

    Attributes:
        state: tensors by parameter name.
        config: the run's resolved config.
        vocabulary: what the answer head's classes mean; None without such a head.
        metric: name of the validation metric that selected them; None without validation.
        value: the metric's value.
        step: optimizer steps of training.
    """

    state: Mapping[str, torch.Tensor]
    config: dict[str, Any]
    vocabulary: AnswerVocabulary | None
    metric: str | None
    value: float | None
    step: int

    def save(self, path: Path) -> None:
        """Write a file of tensors; the rest goes into its metadata as JSON.

        Raises OSError where it can't be written; what was there before then stands.
        """
        facts = {
            "config": self.config,
            "vocabulary": self.vocabulary.as_dict() if self.vocabulary else None,
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "lavis_ext": __version__,
        }
        write_tensors(path, {"format": FORMAT, FACTS: json.dumps(facts)}, self.state)

    @classmethod
    def load(cls, source: str | Path, *, tensors: bool = True) -> "FusionWeights":
        """Read what ``save`` wrote; without ``tensors`` only the facts.

        ``source`` is a path, or ``packaged:`` and the path of a file of this package. Raises
        UserError naming the file if it is missing, damaged, or of another kind.
        """
        path = Path(source)
        if str(source).startswith(PACKAGED):
            path = resolve(str(source), key="model.fusion_weights")
        if not is_file(path):
            raise UserError(
                f"model.fusion_weights: there is no file {shortened(str(path), 300)}. Training "
                "writes fusion_encoder_best.safetensors into the run's folder."
            )
        state: dict[str, torch.Tensor] = {}
        try:
            if tensors:
                metadata, state = read_tensors(path)
            else:
                metadata = read_metadata(path)
        except DamagedTensors as error:
            raise UserError(
                f"model.fusion_weights: {path} {error}; copy or train it again."
            ) from None
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"model.fusion_weights: {path} holds no fusion weights of this library; expected a "
                "file that training wrote, such as fusion_encoder_best.safetensors."
            )
        # What was written before there were checksums has none; a damaged name of one isn't that.
        if not metadata.keys() <= {"format", FACTS, DIGEST} or FACTS not in metadata:
            raise UserError(f"model.fusion_weights: {path} is damaged; copy or train it again.")
        try:
            return cls(state=state, **_facts(parse_json(metadata[FACTS])))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"model.fusion_weights: {path} is damaged: what it says of its run can't be used "
                f"({shortened(repr(error), 120)})."
            ) from None


def _facts(told: Any) -> dict[str, Any]:
    """What a file says beside its tensors. Raises KeyError, TypeError and ValueError."""
    config, vocabulary = told["config"], told["vocabulary"]
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise TypeError("no config of a run")
    _refuse_references(config)
    if not all(isinstance(told[name], kind) for name, kind in KINDS.items()):
        raise TypeError(f"{', '.join(KINDS)} of another kind")
    return {
        "config": config,
        "vocabulary": None if vocabulary is None else AnswerVocabulary.from_dict(vocabulary),
        **{name: told[name] for name in KINDS},
    }


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
