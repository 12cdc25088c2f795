"""The interface between models and the runner, which trains any :class:`TrainableModel`.

Models that generate text also implement the interface in ``decoders/base.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import LoadReport, load_into
from lavis_ext.common.metrics import Metric
from lavis_ext.config.loader import load_yaml
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.schema import option
from lavis_ext.config.typed import default_config, typed
from lavis_ext.encoders.base import Encoder
from lavis_ext.models.lora import LoraConfig, adapt, by_model_names, new_updates
from lavis_ext.registry import BaseModel


class StepOutput(NamedTuple):
    """Output of ``forward`` for one process's share of a batch, as sums rather than averages."""

    losses: dict[str, Tensor]
    """Weighted sums over the examples by name, with gradient; their total is minimized."""
    report: dict[str, Tensor]
    """Metric sums over the examples, averaged in logs and evaluations."""
    examples: int
    """Number of examples."""


def total_loss(output: StepOutput) -> Tensor:
    """The sum of a batch's losses, in float32."""
    return torch.stack([loss.float() for loss in output.losses.values()]).sum()


@dataclass
class ModelConfig:
    """Common options of models; a model's ``Config`` extends it."""

    arch: str = option("", "The model's name in the registry.")
    lora: list[LoraConfig] | None = option(
        None,
        "Layers adapted by LoRA, each entry with `modules`, `rank`, `alpha`, `dropout`.",
    )


class TrainableModel(BaseModel, ABC):
    """A model that the runner can train. Register it with ``registry.register_model``.

    Class attributes:
        Config: dataclass of the section ``model``, with ``arch`` and ``model_type``, preferably a
            subclass of :class:`ModelConfig`.
        CONFIGS: folder with a YAML for each model type; None for a model without types.
        weights_name: prefix of the weights files that training writes.
        default_task: task of a run without ``run.task``; None if it is required.
        trainable: patterns of the parameters to train if ``run.trainable`` is null; an instance may
            have its own.
        weights_key: option that loads such a file.
        OLD_KEYS: renamed keys of configs.
        OLD_PARAMETERS: patterns (``re``) of earlier versions' parameter names, with replacements.
        OLD_TRAINABLE: patterns of ``run.trainable`` that changed meaning, each with current ones.
        EXPORTS: targets of ``export``.
        answering_parts: config sections of parts loaded only to answer.
        pipeline_tag: the Hugging Face hub's name of what the model does, for its model card.
    """

    Config: ClassVar[type[Any]]
    config: Any = None
    CONFIGS: ClassVar[Path | None] = None
    weights_name: ClassVar[str] = "weights"
    default_task: ClassVar[str | None] = None
    trainable: Sequence[str] = ("*",)
    weights_key: ClassVar[str] = "weights"
    OLD_KEYS: ClassVar[Sequence[OldKey]] = ()
    OLD_PARAMETERS: ClassVar[Mapping[str, str]] = {}
    OLD_TRAINABLE: ClassVar[Mapping[str, Sequence[str]]] = {}
    EXPORTS: ClassVar[Sequence[str]] = ()
    answering_parts: ClassVar[Sequence[str]] = ()
    pipeline_tag: ClassVar[str | None] = None
    _is_adapted = False

    @abstractmethod
    def forward(self, samples: Any) -> StepOutput:
        """Compute a batch's losses, metric sums and number of examples."""

    @property
    def metrics(self) -> list[Metric]:
        """Metrics in ``StepOutput.report``. The runner adds ``loss``."""
        return []

    @property
    def streams(self) -> Mapping[str, Encoder]:
        """The model's encoders by stream; none by default."""
        return {}

    @property
    def token_streams(self) -> Mapping[str, Encoder]:
        """Encoders whose tokens training reads and a store may hold, by stream."""
        return self.streams

    @property
    def load_reports(self) -> list[LoadReport]:
        """Results of loading weights, for the log."""
        return []

    def exported_state(self) -> dict[str, Tensor]:
        """Tensors for a file of trained weights by parameter name; all by default."""
        return self.state_dict()

    def exported_facts(self) -> dict[str, Any]:
        """Further content of such a file as JSON, such as a vocabulary."""
        return {}

    def may_lack(self) -> list[str]:
        """Name patterns that a file of trained weights may lack, as they have other sources."""
        exported = self.exported_state()
        return [key for key in self.state_dict() if key not in exported]

    def new_parts(self, state: Mapping[str, Tensor]) -> list[str]:
        """Name patterns of parts that change nothing until they are trained, and aren't in a file.

        ``state`` has the file's tensors by parameter name.
        """
        return []

    def unused_parts(self, state: Mapping[str, Tensor]) -> list[str]:
        """Name patterns of a file's parts that this model goes without, as ``new_parts``."""
        return []

    def load_trained(self, weights: TrainedWeights, name: str) -> LoadReport:
        """Load a file written by training. Raises UserError if the weights don't match.

        LoRA updates and ``new_parts`` missing from the file keep their initial values.
        """
        self.adapt()
        state = self.own_names(weights, name)
        new, unused = self.new_parts(state), self.unused_parts(state)
        notes = [f"not in the file, and untrained: {', '.join(new)}"] if new else []
        notes += [f"left out, as the model has none: {', '.join(unused)}"] if unused else []
        report = load_into(
            self,
            state,
            name=name,
            allow_missing=[*self.may_lack(), *new_updates(self, state), *new],
            allow_unexpected=unused,
            notes=notes,
        )
        return replace(report, of_parts=True)

    def own_names(self, weights: TrainedWeights, source: str) -> dict[str, Tensor]:
        """A file's tensors under this model's names. ``source`` names the file in errors."""
        return by_model_names(self, weights.renamed(self.OLD_PARAMETERS), source)

    def adapt(self) -> None:
        """Insert LoRA as set in ``model.lora``, once, after loading pretrained weights.

        Called by ``from_config`` and ``load_trained``. Raises UserError for invalid patterns.
        """
        entries = None if self._is_adapted else getattr(self.config, "lora", None)
        self._is_adapted = True
        if entries:
            adapt(self, entries)

    def export(self, target: str, out: Path) -> str:
        """Write the model for another program to a new path; ``target`` is one of ``EXPORTS``.

        Returns a phrase describing the output. Raises OSError if it can't be written, and UserError
        for a model without such an export.
        """
        raise NotImplementedError(target)

    def may_leave_unused(self, trained: Mapping[str, Tensor]) -> bool:
        """Whether some of the ``trained`` parameters may get no gradient in a step.

        DDP then searches for them in each step, which costs a traversal of the graph.
        """
        return True

    def shard_units(self) -> list[str]:
        """Name patterns of modules that ``run.sharding`` shards by default.

        Each is called as a module and doesn't read another's parameters.
        """
        return []

    def compile_parts(self, backend: str) -> None:
        """Compile the modules of the training path with a backend of ``torch.compile``."""
        self.compile(backend=backend)

    def with_examples(self, samples: Any, times: int) -> Any | None:
        """The batch with ``times`` distinct versions of each example about the same pictures.

        The dry run uses it to separate the cost of a picture from that of an example. None if an
        example is a picture.
        """
        return None

    @classmethod
    def types(cls) -> dict[str, Path]:
        """YAML of each model type."""
        return (
            {path.stem: path for path in sorted(cls.CONFIGS.glob("*.yaml"))} if cls.CONFIGS else {}
        )

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """Default config of a type. Raises UserError with the known types for an unknown one."""
        return default_config(cls.types(), str(model_type), "model.model_type")

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """Defaults for the section ``given``: those of its type, if it has one."""
        if given.get("model_type"):
            section: DictConfig = load_yaml(
                Path(cls.default_config_path(str(given.model_type)))
            ).model
            return section
        return OmegaConf.create({})

    @classmethod
    def needs_weights(cls, config: Any) -> bool:
        """Whether only trained weights make a model of this section worth evaluating."""
        return True

    @classmethod
    def parts_to_answer(cls, config: Any) -> Sequence[str]:
        """Those of ``answering_parts`` that training this section goes without."""
        return cls.answering_parts

    @classmethod
    def complete_saved(cls, section: dict[str, Any]) -> None:
        """Add values that were implicit in earlier versions to a saved section."""

    @classmethod
    def from_config(cls, cfg: Any, *, load_weights: bool = True, **facts: Any) -> Any:
        """Build a model from the section ``model``, typed or as LAVIS passes it.

        Without ``load_weights`` all weights are random. ``facts`` come from the task and its data,
        such as a vocabulary.
        """
        if not isinstance(cfg, cls.Config):
            cfg = typed(cls.Config, cfg, "model")
        build: Any = cls
        model = build(cfg, load_weights=load_weights, **facts)
        model.adapt()
        return model


def no_grad_if_constant(modules: Iterable[nn.Module], *inputs: Tensor) -> Any:
    """Context that disables gradients if neither parameters nor inputs need them."""
    needed = any(p.requires_grad for module in modules for p in module.parameters()) or any(
        each.requires_grad for each in inputs
    )
    return torch.set_grad_enabled(needed and torch.is_grad_enabled())
