"""The contract between a model and the runner, which trains any :class:`TrainableModel`.

That of a model that writes texts is in ``decoders/base.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import LoadReport, load_into
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.metrics import Metric
from lavis_ext.config.loader import load_yaml
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.typed import typed
from lavis_ext.encoders.base import Encoder
from lavis_ext.registry import BaseModel


class StepOutput(NamedTuple):
    """What ``forward`` gives for one process's share of a batch. Nothing in it is divided."""

    losses: dict[str, Tensor]
    """Sums over the examples by name, weighted, with gradient; their sum is trained."""
    report: dict[str, Tensor]
    """Sums over the examples of what is averaged in the log and in evaluations."""
    examples: int
    """How many."""


def total_loss(output: StepOutput) -> Tensor:
    """The sum of a batch's losses, in float32."""
    return torch.stack([loss.float() for loss in output.losses.values()]).sum()


class TrainableModel(BaseModel, ABC):
    """A model that the runner can train. Register it with ``registry.register_model``.

    Class attributes:
        Config: the section ``model``, a dataclass of options with ``arch`` and ``model_type``.
        CONFIGS: folder of the model's types, a YAML each; None for a model without types.
        weights_name: what the files of weights that training writes begin with.
        default_task: the task of a run that names none; None where it has to.
        trainable: patterns of the parameters that are trained where ``run.trainable`` is null.
        weights_key: the option that names such a file, to be loaded.
        OLD_KEYS: renamed keys of configs.
        OLD_PARAMETERS: patterns (``re``) of parameter names of earlier versions, with replacements.
        OLD_TRAINABLE: patterns of ``run.trainable`` that meant more, with what they meant.
    """

    Config: ClassVar[type[Any]]
    CONFIGS: ClassVar[Path | None] = None
    weights_name: ClassVar[str] = "weights"
    default_task: ClassVar[str | None] = None
    trainable: ClassVar[Sequence[str]] = ("*",)
    weights_key: ClassVar[str] = "weights"
    OLD_KEYS: ClassVar[Sequence[OldKey]] = ()
    OLD_PARAMETERS: ClassVar[Mapping[str, str]] = {}
    OLD_TRAINABLE: ClassVar[Mapping[str, Sequence[str]]] = {}

    @abstractmethod
    def forward(self, samples: Any) -> StepOutput:
        """Losses, sums to report, and the number of examples of a batch."""

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that ``StepOutput.report`` has sums of; ``loss`` is the runner's own."""
        return []

    @property
    def streams(self) -> Mapping[str, Encoder]:
        """The encoders by stream whose output can be stored; empty for a model without any."""
        return {}

    @property
    def load_reports(self) -> list[LoadReport]:
        """What was loaded from where, for the log."""
        return []

    def exported_state(self) -> dict[str, Tensor]:
        """What a file of trained weights holds, by parameter name; by default everything."""
        return self.state_dict()

    def exported_facts(self) -> dict[str, Any]:
        """What such a file says beside its tensors, as JSON, such as a vocabulary."""
        return {}

    def load_trained(self, weights: TrainedWeights, name: str) -> LoadReport:
        """Take the weights of a file that training wrote. Raises UserError where they don't fit."""
        state = weights.renamed(self.OLD_PARAMETERS)
        exported = self.exported_state()
        allowed = [key for key in self.state_dict() if key not in exported]
        return load_into(self, state, name=name, allow_missing=allowed)

    def may_leave_unused(self, trained: Mapping[str, Tensor]) -> bool:
        """Whether some of the ``trained`` parameters may get no gradient in a step.

        DDP then looks for them in each step, which costs a pass over the graph.
        """
        return True

    def compile_parts(self, backend: str) -> None:
        """Compile what a batch passes on its way to a loss, with a backend of ``torch.compile``."""
        self.compile(backend=backend)

    def with_examples(self, samples: Any, times: int) -> Any | None:
        """The batch with each example ``times`` times about the same pictures, as distinct ones.

        The dry run tells by it what is paid for a picture and what for an example; None says that
        an example is a picture.
        """
        return None

    @classmethod
    def types(cls) -> dict[str, Path]:
        """The model's types and their YAMLs."""
        return (
            {path.stem: path for path in sorted(cls.CONFIGS.glob("*.yaml"))} if cls.CONFIGS else {}
        )

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """The default config of a type. Raises UserError naming the types there are."""
        types = cls.types()
        if model_type not in types:
            raise UserError(
                f"model.model_type is '{model_type}'; there are: {', '.join(types) or 'none'}."
                f"{nearest(str(model_type), types)}"
            )
        return str(types[model_type])

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """What the section ``given`` is merged over: its type's, if it names one."""
        if given.get("model_type"):
            section: DictConfig = load_yaml(
                Path(cls.default_config_path(str(given.model_type)))
            ).model
            return section
        return OmegaConf.create({})

    @classmethod
    def from_config(cls, cfg: Any, *, load_weights: bool = True, **facts: Any) -> Any:
        """Build from the section ``model``, typed or as LAVIS hands it over.

        Without ``load_weights`` every part is random. ``facts`` are what the task found out from
        the data, such as a vocabulary.
        """
        if not isinstance(cfg, cls.Config):
            cfg = typed(cls.Config, cfg, "model")
        build: Any = cls
        return build(cfg, load_weights=load_weights, **facts)


def no_grad_if_constant(modules: Iterable[nn.Module], *inputs: Tensor) -> Any:
    """Keep no activations where neither the modules' parameters nor the inputs need a gradient."""
    needed = any(p.requires_grad for module in modules for p in module.parameters()) or any(
        each.requires_grad for each in inputs
    )
    return torch.set_grad_enabled(needed and torch.is_grad_enabled())
