"""The registered model ``pnp_vqa_fusion``: two visual encoders and the fusion between them."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lavis_ext.checkpoints.trained_weights import FusionWeights
from lavis_ext.checkpoints.weights import LoadReport, load_into
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.loader import load_yaml
from lavis_ext.config.typed import typed
from lavis_ext.datasets.gqa.dataset import FusionSamples
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary
from lavis_ext.features.precision import restored
from lavis_ext.features.streams import ImageStream
from lavis_ext.fusion.network import FusionNetwork
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.objectives.base import FusedBatch, HeadSizes
from lavis_ext.objectives.question_head import PackedDecoderLayer
from lavis_ext.registry import BaseModel, registry

if TYPE_CHECKING:
    from lavis_ext.models.pnp_vqa.answering import EncodedImages, Located, PipelineOutput

CONFIGS = Path(__file__).parent / "configs"
ENCODERS = ("blip", "efficient_sam")
ANSWERING_PARTS = ("captioner", "reader")
"""Children that training has no use for."""


@registry.register_model("pnp_vqa_fusion")
class PnpVqaFusion(BaseModel):
    """BLIP's and EfficientSAM's tokens, fused, and what makes answers of them.

    Children: ``blip`` (BlipEncoder), ``efficient_sam`` (EfficientSam), ``fusion`` (FusionNetwork,
    with the objectives' heads in ``fusion.heads``), ``captioner`` (BlipCaptioner) and ``reader``
    (FidReader). The last two, and EfficientSAM where the fusion doesn't read its stream, are there
    only in a model that is built for ``answering``.

    Args:
        config: the section ``model``.
        vocabulary: the answers of the training split; needed by the objective ``answer`` unless
            ``fusion_weights`` brings it.
        load_weights: False leaves every part at its random initialisation.
        answering: whether the whole pipeline is wanted, and not the fusion's training alone.
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
        answering: bool = False,
    ) -> None:
        super().__init__()
        from lavis_ext.encoders.blip.encoder import BlipEncoder
        from lavis_ext.encoders.efficient_sam.encoder import EfficientSam

        if answering:
            config.check_answering(load_weights=load_weights)

        self.config = config
        saved = None
        if config.fusion_weights and load_weights:
            saved = FusionWeights.load(config.fusion_weights)
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
        if answering or "segmentation" in self.fusion.streams:
            self.efficient_sam = EfficientSam(replace(config.efficient_sam, **unloaded))
        if answering:
            from lavis_ext.decoders.blip_captioner import BlipCaptioner
            from lavis_ext.decoders.fid_reader import FidReader

            self.captioner = BlipCaptioner(replace(config.captioner, **unloaded))
            self.reader = FidReader(replace(config.reader, **unloaded))
        sizes = HeadSizes(self.blip.width, config.blip.text_width, vocabulary)
        self.objectives = {
            name: registry.get_objective_class(name)(options)
            for name, options in config.objectives.items()
        }
        for name, objective in self.objectives.items():
            if (head := objective.build_head(sizes)) is not None:
                self.fusion.heads[name] = head
        parts = (getattr(self, name, None) for name in (*ENCODERS, *ANSWERING_PARTS))
        self.load_reports = [part.load_report for part in parts if part and part.load_report]
        if saved is not None:
            self.load_reports.append(self._load_fusion_weights(saved))

    @classmethod
    def from_config(
        cls,
        cfg: PnpVqaFusionConfig | DictConfig,
        vocabulary: AnswerVocabulary | None = None,
        *,
        load_weights: bool = True,
        answering: bool = False,
    ) -> "PnpVqaFusion":
        """Build from the section ``model``, typed or as LAVIS hands it over."""
        if not isinstance(cfg, PnpVqaFusionConfig):
            cfg = typed(cls.Config, cfg, "model")
        return cls(cfg, vocabulary, load_weights=load_weights, answering=answering)

    @classmethod
    def from_pretrained(cls, model_type: str) -> "PnpVqaFusion":
        """The model of a type, ready to answer, as LAVIS's ``load_model`` builds it."""
        section = cls.default_section(OmegaConf.create({"model_type": model_type}))
        return cls.from_config(section, answering=True)

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
            path = str(given.fusion_weights)
            defaults = OmegaConf.create(FusionWeights.load(path, tensors=False).config["model"])
            if not OmegaConf.is_dict(defaults.get("fusion")) or "name" not in defaults.fusion:
                raise UserError(f"model.fusion_weights: {path} was trained without a fusion.")
            trained_as = str(defaults.get("model_type"))
            if str(given.get("model_type") or trained_as) != trained_as:
                raise UserError(
                    f"model.model_type is {given.model_type}, but {path} was trained as "
                    f"{trained_as}. Leave model_type out, or name other weights."
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

    def encode(self, samples: FusionSamples) -> "EncodedImages":
        """What the encoders see in the batch's images, each encoded once, or what is stored."""
        from lavis_ext.models.pnp_vqa.answering import EncodedImages

        if "grid_tokens" in samples:
            grid_tokens, grid = _restored(samples, "grid")
            segmentation_tokens, shape = None, (0, 0)
            if "segmentation_tokens" in samples:
                segmentation_tokens, shape = _restored(samples, "segmentation")
            return EncodedImages(grid_tokens, grid, segmentation_tokens, shape, (0, 0))
        with no_grad_if_frozen(self.blip.blip.vision_model):
            grid_tokens = self.blip.encode_image(samples["grid_image"])
        if not hasattr(self, "efficient_sam"):
            return EncodedImages(grid_tokens, self.blip.grid, None, (0, 0), (0, 0))
        images = samples["segmentation_image"]
        size = (images.shape[-2], images.shape[-1])
        with no_grad_if_frozen(self.efficient_sam):
            segmentation_tokens = self.efficient_sam.encode_image(images)
        return EncodedImages(
            grid_tokens,
            self.blip.grid,
            segmentation_tokens,
            self.efficient_sam.grid(*size),
            size,
        )

    def image_streams(self) -> list[ImageStream]:
        """The encoders whose tokens the fusion reads, for the feature store."""
        blip, sizes = self.blip, self.config.blip
        streams = [
            ImageStream(
                "grid",
                (blip.normalise, blip.blip.vision_model),
                blip.encode_image,
                blip.grid,
                class_token=True,
                width=blip.width,
                options={"image_size": sizes.image_size, "heads": sizes.vision_heads},
            )
        ]
        if hasattr(self, "efficient_sam"):
            sam, side = self.efficient_sam, self.config.efficient_sam.image_size
            streams.append(
                ImageStream(
                    "segmentation",
                    (sam.normalise, sam.image_encoder),
                    sam.encode_image,
                    sam.grid(side, side),
                    class_token=False,
                    width=sam.width,
                    options={"image_size": side, "heads": sam.config.heads},
                )
            )
        return streams

    def compile_parts(self, backend: str) -> None:
        """Let ``torch.compile`` make programs of what a batch passes on its way to a loss.

        What depends on strings and on the number of questions stays outside, so that shapes are
        few: images a batch, and the padded lengths of their rows of questions.
        """
        options = {"backend": backend, "dynamic": False}
        self.blip.compile_passes(**options)
        self.fusion.compile(**options)
        for module in self.fusion.heads.modules():
            if isinstance(module, PackedDecoderLayer):
                module.compile(**options)
        if hasattr(self, "efficient_sam"):
            self.efficient_sam.image_encoder.compile(**options)

    def fuse(self, samples: FusionSamples) -> torch.Tensor:
        """Fused tokens [I, 1+N, D] of the batch's I images."""
        return self._fused(self.encode(samples))

    def _fused(self, images: "EncodedImages") -> torch.Tensor:
        fused: torch.Tensor = self.fusion(
            images.grid_tokens, images.segmentation_tokens, images.segmentation_grid, images.grid
        )
        return fused

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

    @torch.no_grad()
    def locate(self, samples: FusionSamples, block_num: int | None = None) -> "Located":
        """Where the batch's questions look: heat maps, points, masks, refined heat maps.

        Needs a model built for answering, and the images. See
        :func:`lavis_ext.models.pnp_vqa.answering.locate`.
        """
        if "grid_image" not in samples:
            raise UserError(
                "Masks and captions are made from images, and the samples hold stored features "
                "alone; leave run.features out."
            )
        from lavis_ext.models.pnp_vqa.answering import LocatingConfig, locate

        matching = self.config.question_matching
        if block_num is not None:
            matching = replace(matching, block_num=block_num)
        config = LocatingConfig(matching, self.config.points, self.config.refined_heat)
        images = self.encode(samples)
        return locate(self.blip, self.efficient_sam, self._fused(images), images, samples, config)

    @torch.no_grad()
    def answer(self, samples: FusionSamples, **given: Any) -> "PipelineOutput":
        """Answers of the whole pipeline, with everything that led to them.

        Needs a model built for answering. ``given`` are options of ``predict_answers``.
        """
        from lavis_ext.models.pnp_vqa.answering import answer, overridden

        sampling, reading = overridden(self.config.captioner.sampling, self.config.reader, given)
        return answer(
            self.locate(samples, given.get("block_num")),
            self.captioner,
            self.reader,
            samples,
            sampling,
            reading,
        )

    def predict_answers(
        self,
        samples: FusionSamples,
        num_beams: int | None = None,
        inference_method: str = "generate",
        max_len: int | None = None,
        min_len: int | None = None,
        internal_bsz_fid: int | None = None,
        num_captions: int | None = None,
        num_captions_fid: int | None = None,
        cap_max_length: int | None = None,
        cap_min_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        num_patches: int | None = None,
        block_num: int | None = None,
    ) -> tuple[list[str], list[list[str]], torch.Tensor]:
        """Answers as LAVIS's PNP-VQA gives them, with its arguments in its order.

        Arguments that are None are the config's: ``model.reader`` (beams, lengths of answers,
        captions a passage, and ``internal_bsz_fid``, passages encoded together),
        ``model.captioner.sampling`` and ``model.question_matching``.

        Returns:
            The answers [Q], the captions of each question, and the refined heat maps [Q, N] that
            patches were drawn by, where LAVIS returns the raw ones.

        Raises:
            UserError: for an ``inference_method`` other than ``generate``, and as the steps do.
        """
        if inference_method != "generate":
            raise UserError(
                f"inference_method is '{inference_method}'; PNP-VQA's reader has 'generate' alone."
            )
        output = self.answer(
            samples,
            num_beams=num_beams,
            max_len=max_len,
            min_len=min_len,
            internal_bsz_fid=internal_bsz_fid,
            num_captions=num_captions,
            num_captions_fid=num_captions_fid,
            cap_max_length=cap_max_length,
            cap_min_length=cap_min_length,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            num_patches=num_patches,
            block_num=block_num,
        )
        return output.answers, output.captions, output.patch_heat

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
            "count": len(batch),
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
        """Name prefixes of the parts whose weights are in files of their own."""
        loaded = [part for part in ENCODERS if getattr(self.config, part).weights is not None]
        return [f"{part}." for part in (*loaded, *ANSWERING_PARTS)]

    def _head(self, name: str) -> nn.Module | None:
        heads = self.fusion.heads
        return heads[name] if name in heads else None  # noqa: SIM401 (ModuleDict has no get)


def _restored(samples: FusionSamples, stream: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """A stream's stored tokens as its encoder gave them, float32, and their grid."""
    given: Mapping[str, Any] = samples
    tokens = restored(given[f"{stream}_tokens"], given.get(f"{stream}_scales"))
    return tokens, given[f"{stream}_shape"]


def no_grad_if_frozen(module: nn.Module) -> Any:
    """Frozen encoders keep no activations for a backward pass."""
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return nullcontext() if trained else torch.no_grad()
