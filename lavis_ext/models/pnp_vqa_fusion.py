"""The registered model ``pnp_vqa_fusion``: two visual encoders and the fusion between them."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lavis_ext.config.loader import load_yaml
from lavis_ext.config.schema import option
from lavis_ext.config.typed import schema_of, typed
from lavis_ext.datasets.gqa import FusionSamples
from lavis_ext.datasets.vocabulary import AnswerVocabulary
from lavis_ext.door import BaseModel, registry
from lavis_ext.errors import UserError, nearest
from lavis_ext.fusion.base import FusionConfig
from lavis_ext.fusion.network import FusionNetwork
from lavis_ext.models.fusion_weights import FusionWeights
from lavis_ext.objectives.base import FusedBatch, HeadSizes
from lavis_ext.weights import LoadReport, load_into

CONFIGS = Path(__file__).parents[1] / "configs" / "models" / "pnp_vqa_fusion"


@dataclass
class PnpVqaFusionConfig:
    """The section ``model``."""

    arch: str = option("pnp_vqa_fusion", "The model's name in the registry.")
    model_type: str | None = option(None, "Which default config the section starts from.")
    blip: Any = option(dict, "BLIP (BlipEncoderConfig).")
    efficient_sam: Any = option(dict, "EfficientSAM (EfficientSamConfig).")
    fusion: Any = option(dict, "The fusion: its name in the registry, and its own options.")
    objectives: dict[str, Any] = option(dict, "Objectives by name, each with its options.")
    fusion_weights: str | None = option(None, "File that training wrote, to be loaded.")

    def check_together(self, where: str) -> None:
        """Give the sections of the parts the types that their classes own."""
        from lavis_ext.encoders.blip import BlipEncoderConfig
        from lavis_ext.encoders.efficient_sam import EfficientSamConfig

        self.blip = typed(BlipEncoderConfig, self.blip, f"{where}.blip")
        self.efficient_sam = typed(EfficientSamConfig, self.efficient_sam, f"{where}.efficient_sam")
        named = self.fusion.get("name") if isinstance(self.fusion, Mapping) else None
        schema = schema_of("fusion", named or FusionConfig().name, f"{where}.fusion.name")
        self.fusion = typed(schema, self.fusion, f"{where}.fusion")
        for name, options in self.objectives.items():
            key = f"{where}.objectives.{name}"
            schema = schema_of("objective", name, key)
            self.objectives[name] = typed(schema, {} if options is None else options, key)


@registry.register_model("pnp_vqa_fusion")
class PnpVqaFusion(BaseModel):
    """BLIP's and EfficientSAM's tokens, fused, with the objectives that train the fusion.

    Children: ``blip`` (BlipEncoder), ``efficient_sam`` (EfficientSam, absent where the fusion
    doesn't read its stream) and ``fusion`` (FusionNetwork, with the objectives' heads in
    ``fusion.heads``).

    Args:
        config: the section ``model``.
        vocabulary: the answers of the training split; needed by the objective ``answer`` unless
            ``fusion_weights`` brings it.
        load_weights: False leaves every part at its random initialisation.
    """

    Config = PnpVqaFusionConfig
    weights_name = "fusion_encoder"
    """What the files of weights that training writes begin with."""
    PRETRAINED_MODEL_CONFIG_DICT: Mapping[str, str] = {
        path.stem: str(path) for path in sorted(CONFIGS.glob("*.yaml"))
    }

    def __init__(
        self,
        config: PnpVqaFusionConfig,
        vocabulary: AnswerVocabulary | None = None,
        *,
        load_weights: bool = True,
    ) -> None:
        super().__init__()
        from lavis_ext.encoders.blip import BlipEncoder
        from lavis_ext.encoders.efficient_sam import EfficientSam

        self.config = config
        saved = None
        if config.fusion_weights and load_weights:
            saved = FusionWeights.load(Path(config.fusion_weights))
            vocabulary = saved.vocabulary or vocabulary
        self.vocabulary = vocabulary
        unloaded = {} if load_weights else {"weights": None}
        self.blip = BlipEncoder(replace(config.blip, **unloaded))
        self.fusion = FusionNetwork(
            config.fusion,
            grid_width=self.blip.width,
            grid_size=self.blip.grid,
            segmentation_width=config.efficient_sam.neck_width,
        )
        if "segmentation" in self.fusion.streams:
            self.efficient_sam = EfficientSam(replace(config.efficient_sam, **unloaded))
        sizes = HeadSizes(self.blip.width, config.blip.text_width, vocabulary)
        self.objectives = {
            name: registry.get_objective_class(name)(options)
            for name, options in config.objectives.items()
        }
        for name, objective in self.objectives.items():
            if (head := objective.build_head(sizes)) is not None:
                self.fusion.heads[name] = head
        encoders = (self.blip, getattr(self, "efficient_sam", None))
        self.load_reports = [e.load_report for e in encoders if e and e.load_report]
        if saved is not None:
            self.load_reports.append(self._load_fusion_weights(saved))

    @classmethod
    def from_config(
        cls,
        cfg: PnpVqaFusionConfig | DictConfig,
        vocabulary: AnswerVocabulary | None = None,
        *,
        load_weights: bool = True,
    ) -> "PnpVqaFusion":
        """Build from the section ``model``, typed or as LAVIS hands it over."""
        if not isinstance(cfg, PnpVqaFusionConfig):
            cfg = typed(cls.Config, cfg, "model")
        return cls(cfg, vocabulary, load_weights=load_weights)

    @classmethod
    def from_pretrained(cls, model_type: str) -> "PnpVqaFusion":
        """The model of a type with its pretrained encoders, as LAVIS's ``load_model`` builds it."""
        return cls.from_config(cls.default_section(OmegaConf.create({"model_type": model_type})))

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """The default config of a type. Raises UserError naming the types there are."""
        if model_type not in cls.PRETRAINED_MODEL_CONFIG_DICT:
            types = cls.PRETRAINED_MODEL_CONFIG_DICT
            raise UserError(
                f"model.model_type is '{model_type}'; pnp_vqa_fusion has: {', '.join(types)}."
                f"{nearest(str(model_type), types)}"
            )
        return cls.PRETRAINED_MODEL_CONFIG_DICT[model_type]

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """What the section ``given`` is merged over.

        That is the default config of its ``model_type`` or, with ``fusion_weights``, the section
        that the weights were trained with. A fusion of another name leaves the default's options
        behind, and objectives that are given replace the default's.
        """
        if given.get("fusion_weights"):
            path = Path(str(given.fusion_weights))
            defaults = OmegaConf.create(FusionWeights.load(path, tensors=False).config["model"])
            if str(given.get("model_type") or defaults.model_type) != defaults.model_type:
                raise UserError(
                    f"model.model_type is {given.model_type}, but {path} was trained as "
                    f"{defaults.model_type}. Leave model_type out, or name other weights."
                )
        elif given.get("model_type"):
            defaults = load_yaml(Path(cls.default_config_path(str(given.model_type)))).model
        else:
            raise UserError(
                "model: give fusion_weights, a file that training wrote (with --options "
                "model.fusion_weights=PATH), or model_type, one of: "
                f"{', '.join(cls.PRETRAINED_MODEL_CONFIG_DICT)}."
            )
        fusion = given.get("fusion")
        name = fusion.get("name") if OmegaConf.is_dict(fusion) else None
        if name not in (None, defaults.fusion.name):
            # The options of another fusion mean nothing to it, but for leaving out the gate.
            ungated = {"gate": False} if defaults.fusion.get("gate") is False else {}
            defaults.fusion = {"name": name, **ungated}
        if given.get("objectives") is not None:
            defaults.objectives = {}
        assert isinstance(defaults, DictConfig)
        return defaults

    def fuse(self, samples: FusionSamples) -> torch.Tensor:
        """Fused tokens [I, 1+N, D] of the batch's I images."""
        with _no_grad_if_frozen(self.blip.blip.vision_model):
            grid_tokens = self.blip.encode_image(samples["grid_image"])
        if "segmentation" not in self.fusion.streams:
            return self.fusion(grid_tokens)
        images = samples["segmentation_image"]
        with _no_grad_if_frozen(self.efficient_sam):
            segmentation_tokens = self.efficient_sam.encode_image(images)
        return self.fusion(
            grid_tokens, segmentation_tokens, self.efficient_sam.grid(*images.shape[-2:])
        )

    def forward(self, samples: FusionSamples) -> dict[str, Any]:
        """Loss and report of a batch.

        Returns:
            ``loss``: the objectives' weighted losses, summed over this process's questions and
            divided by those of all processes (``global_size``), so that the sum over processes is
            the mean over the global batch. ``report``: sums over this process's questions, of
            which there are ``count``.
        """
        return self._losses(FusedBatch(self.fuse(samples), samples, self.blip))

    @torch.no_grad()
    def evaluate(self, samples: FusionSamples) -> tuple[dict[str, torch.Tensor], list[str] | None]:
        """The report that ``forward`` makes, and the answers [Q] of the answer head.

        The answers are None for a model without such a head.
        """
        batch = FusedBatch(self.fuse(samples), samples, self.blip)
        answers = None
        for name, objective in self.objectives.items():
            answers = answers or objective.predict(batch, self._head(name))
        return self._losses(batch)["report"], answers

    def _losses(self, batch: FusedBatch) -> dict[str, Any]:
        total = torch.zeros((), device=batch.fused.device)
        report: dict[str, torch.Tensor] = {}
        for name, objective in self.objectives.items():
            losses, figures = objective(batch, self._head(name))
            total = total + objective.config.weight * losses.float().sum()
            report[f"{name}_loss"] = losses.detach().float().sum()
            report |= {f"{name}_{figure}": value for figure, value in figures.items()}
        report["loss"] = total.detach()
        return {
            "loss": total / batch.samples["global_size"],
            "report": report,
            "count": len(batch.samples["text_input"]),
        }

    @property
    def figures(self) -> list[str]:
        """Names of the figures that a report of this model has."""
        return [
            "loss",
            *(
                f"{name}_{figure}"
                for name, objective in self.objectives.items()
                for figure in ("loss", *objective.figures)
            ),
        ]

    def exported_state(self) -> dict[str, torch.Tensor]:
        """What a file of fusion weights holds, by parameter name.

        The fusion network; every other parameter that is trained; and encoders that were made
        without pretrained weights, since no other place has theirs.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        elsewhere = tuple(self._parts_with_weights())
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in trained or not name.startswith(elsewhere)
        }

    def _load_fusion_weights(self, saved: FusionWeights) -> LoadReport:
        return load_into(
            self,
            dict(saved.state),
            name=f"fusion weights from {self.config.fusion_weights}",
            allow_missing=[f"{part}*" for part in self._parts_with_weights()],
        )

    def _parts_with_weights(self) -> list[str]:
        """Name prefixes of the encoders that were loaded from pretrained weights."""
        encoders = {"blip.": self.config.blip, "efficient_sam.": self.config.efficient_sam}
        return [prefix for prefix, options in encoders.items() if options.weights is not None]

    def _head(self, name: str) -> nn.Module | None:
        heads = self.fusion.heads
        return heads[name] if name in heads else None  # noqa: SIM401 (ModuleDict has no get)


def _no_grad_if_frozen(module: nn.Module) -> Any:
    """Frozen encoders keep no activations for a backward pass."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return nullcontext() if trained else torch.no_grad()
