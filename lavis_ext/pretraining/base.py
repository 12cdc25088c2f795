"""What the models that train the parts of the miniature have in common."""

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
from lavis_ext.models.base import StepOutput, TrainableModel
from lavis_ext.models.pnp_vqa.model import OLD_PACKAGED, PnpVqaFusion


@dataclass
class PretrainingConfig:
    """The section ``model`` of a recipe. Sizes are those of a type of ``pnp_vqa_fusion``."""

    arch: str = option("", "The model's name in the registry.")
    model_type: str | None = option("mini", "The type whose parts are trained.")

    parts: ClassVar[Mapping[str, type]] = {}

    def check_together(self, where: str) -> None:
        """Give the sections of the parts the types that their classes own."""
        for name, schema in self.parts.items():
            setattr(self, name, typed(schema, getattr(self, name), f"{where}.{name}"))


class PretrainingModel(TrainableModel):
    """Trains parts of the model type ``mini`` from random weights.

    Class attributes:
        shipped: name prefix of each part's tensors, and the file of the package it becomes.
        shipped_dtype: how it is stored there.
        reported: the metrics of its report.
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
        """Those of ``reported``."""
        return list(self.reported)

    @classmethod
    def from_config(
        cls, cfg: Any, *, load_weights: bool = True, **facts: Any
    ) -> "PretrainingModel":
        """Build from the section ``model``, typed or as LAVIS hands it over.

        Parts start from random weights, but for those whose ``weights`` a recipe gives.
        """
        if not isinstance(cfg, cls.Config):
            cfg = typed(cls.Config, cfg, "model")
        if not load_weights:
            for part in cfg.parts:
                getattr(cfg, part).weights = None
        build: Any = cls
        return build(cfg)

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """The sections of this model's parts, out of the type's config, without weights."""
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

    def exported_state(self) -> dict[str, Tensor]:
        """Everything: all of it is trained. Each name has a tensor of its own, as files need it."""
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}

    def tied_names(self, prefix: str) -> set[str]:
        """Names below ``prefix`` of parameters that repeat another's, as transformers knows them.

        Files leave them out, and loading fills them in.
        """
        part = self.get_submodule(prefix.rstrip("."))
        return {f"{prefix}{name}" for name in getattr(part, "all_tied_weights_keys", {})}


def step_output(losses: Tensor, report: dict[str, Tensor]) -> StepOutput:
    """From each example's loss [B], and sums over the examples."""
    return StepOutput({"all": losses.sum()}, report, len(losses))
