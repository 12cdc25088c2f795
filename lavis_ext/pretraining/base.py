"""Base class of the models that pretrain parts of the miniature, the model type ``mini``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lavis_ext.common.metrics import Metric
from lavis_ext.config.renamed import OldKey, rename_old_keys
from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed
from lavis_ext.encoders.blip.encoder import BlipSizesConfig, complete_saved_sizes
from lavis_ext.models.base import ModelConfig, StepOutput, TrainableModel
from lavis_ext.models.pnp_vqa.model import OLD_PACKAGED, PnpVqaFusion


@dataclass
class PretrainingConfig(ModelConfig):
    """The section ``model`` of a recipe."""

    model_type: str | None = option(
        "mini", "Model type of pnp_vqa_fusion; its parts are trained, at its sizes."
    )

    parts: ClassVar[Mapping[str, type]] = {}

    def check_together(self, where: str) -> None:
        """Type the sections of the parts by their config classes. Raises UserError."""
        for name, schema in self.parts.items():
            setattr(self, name, typed(schema, getattr(self, name), f"{where}.{name}"))


class PretrainingModel(TrainableModel):
    """Trains parts of the model type ``mini`` from random weights.

    Class attributes:
        shipped: file of each part in the package, by the prefix of its parameter names.
        shipped_dtype: dtype in these files.
        reported: metrics in the output of ``forward``.
    """

    Config: ClassVar[type[PretrainingConfig]]
    CONFIGS = PnpVqaFusion.CONFIGS
    weights_name = "pretrained"
    default_task = "pretraining"
    OLD_KEYS = (OldKey("model.*.tokenizer", values=OLD_PACKAGED),)
    shipped: ClassVar[Mapping[str, str]]
    shipped_dtype: ClassVar[torch.dtype] = torch.float32
    reported: ClassVar[tuple[Metric, ...]] = ()

    @property
    def metrics(self) -> list[Metric]:
        """The metrics in ``reported``."""
        return list(self.reported)

    @classmethod
    def from_config(
        cls, cfg: Any, *, load_weights: bool = True, **facts: Any
    ) -> "PretrainingModel":
        """Build from the section ``model``, a typed one or a DictConfig.

        Parts without ``weights`` in the recipe, or all without ``load_weights``, are initialized
        randomly.
        """
        if not isinstance(cfg, cls.Config):
            cfg = typed(cls.Config, cfg, "model")
        if not load_weights:
            for part in cfg.parts:
                getattr(cfg, part).weights = None
        build: Any = cls
        model: PretrainingModel = build(cfg)
        model.adapt()
        return model

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """The sections of this model's parts in the config of its type, without weights."""
        model_type = str(given.get("model_type") or "mini")
        whole = PnpVqaFusion.default_section(OmegaConf.create({"model_type": model_type}))
        tree: dict[str, Any] = {"model": OmegaConf.to_container(whole)}
        for name, stream in list(tree["model"]["streams"].items()):
            encoder = stream.pop("encoder")
            rename_old_keys(tree, [OldKey(f"model.streams.{name}", f"model.{encoder}")])
        section = {"arch": given.arch, "model_type": model_type}
        for part in cls.Config.parts:
            section[part] = {**tree["model"][part], "weights": None}
        return OmegaConf.create(section)

    @classmethod
    def complete_saved(cls, section: dict[str, Any]) -> None:
        """Add version 0.1's epsilon to the sections of BLIP's parts."""
        for part, schema in cls.Config.parts.items():
            if issubclass(schema, BlipSizesConfig) and isinstance(section.get(part), dict):
                complete_saved_sizes(section[part])

    def exported_state(self) -> dict[str, Tensor]:
        """All tensors by name, cloned because safetensors can't save shared storage."""
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}

    def tied_names(self, prefix: str) -> set[str]:
        """Names below ``prefix`` of parameters that transformers ties to others.

        Files leave them out, and loading ties them again.
        """
        part = self.get_submodule(prefix.rstrip("."))
        return {f"{prefix}{name}" for name in getattr(part, "all_tied_weights_keys", {})}


def step_output(losses: Tensor, report: dict[str, Tensor]) -> StepOutput:
    """The output for losses [B] of B examples and ``report``, sums of metrics over them."""
    return StepOutput({"all": losses.sum()}, report, len(losses))
