"""The registered model ``pnp_vqa_fusion``: visual encoders, fusion and answering."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from lavis_ext.checkpoints.sources import PACKAGED
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.files import is_file
from lavis_ext.common.metrics import LOSS, Metric, prefixed
from lavis_ext.common.packed_linears import pack_linears, quantize_linears
from lavis_ext.config.loader import load_yaml
from lavis_ext.config.renamed import OldKey, rename_old_keys
from lavis_ext.config.typed import schema_of, typed
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.decoders.base import GenerativeModel, TargetScores
from lavis_ext.encoders.base import Encoder, Tokens
from lavis_ext.encoders.questions import QuestionReader
from lavis_ext.fusion.baselines import FirstOnlyConfig
from lavis_ext.fusion.difnet_export import AUTHORS_MODES, save_for_authors
from lavis_ext.fusion.network import FusionNetwork, streams_read
from lavis_ext.fusion.stream_adapter import StreamLayout
from lavis_ext.models.base import (
    StepOutput,
    TrainableModel,
    no_grad_if_constant,
    total_loss,
)
from lavis_ext.models.pnp_vqa.config import FUSED_PARTS, READER, VQA, PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.lavis_calls import DECODING, LavisCalls, check_images
from lavis_ext.objectives.base import FusedBatch, FusedPart, HeadSizes, Objective
from lavis_ext.objectives.question_head import PackedDecoderLayer
from lavis_ext.processors.image import square
from lavis_ext.registry import registry

if TYPE_CHECKING:
    from lavis_ext.encoders.blip.encoder import BlipEncoder
    from lavis_ext.encoders.blip.tower import BlipTower
    from lavis_ext.models.pnp_vqa.answering import Located, PipelineOutput

UNREAD = StreamLayout(0, (0, 0), 0)
"""Placeholder for the layout of a stream that the fusion doesn't read."""
ANSWERING_BLOCKS = ("reader.t5.*.block.*", "captioner.blip.text_decoder.bert.encoder.layer.*")
OLD_PACKAGED = {
    "packaged:encoders/mini_vocabulary.txt": "packaged:miniature/vocabulary.txt",
    "packaged:pipeline/mini_reader_tokenizer.json": "packaged:miniature/reader_tokenizer.json",
}
"""Moved files of the package, old path to new."""


@registry.register_model("pnp_vqa_fusion")
class PnpVqaFusion(LavisCalls, TrainableModel, GenerativeModel):
    """Fusion of visual streams, and PNP-VQA's pipeline from fused tokens to answers.

    Children: ``streams`` (encoders by name), ``question_encoder`` (QuestionReader or None),
    ``fusion`` and ``fusions`` of other parts (FusionNetwork), ``objectives`` by name, ``captioner``
    (BlipCaptioner), ``reader`` (FidReader) and ``vqa`` (BlipVqa). The last three are built only for
    ``answering`` and for an objective that trains through one, and EfficientSAM only for answering
    if no fusion reads its stream.

    Args:
        config: the section ``model``.
        vocabulary: answers of the training split. The objective ``answer`` needs it, unless
            ``fusion_weights`` contains it.
        load_weights: False leaves every part at its random initialization.
        answering: True builds the whole pipeline, False only the parts for training.

    Raises UserError for a config that can't be trained or can't answer, and for weights that can't
    be loaded.
    """

    Config = PnpVqaFusionConfig
    CONFIGS = Path(__file__).parent / "configs"
    weights_key = "fusion_weights"
    default_task = "gqa_fusion"
    weights_name = "fusion_encoder"
    trainable: Sequence[str] = ("fusion.*", "objectives.*")
    answering_parts = ("captioner", "reader", "vqa")
    pipeline_tag = "visual-question-answering"
    OLD_KEYS = (
        OldKey("model.blip", "model.streams.grid", adding={"model.streams.grid.encoder": "blip"}),
        OldKey(
            "model.efficient_sam",
            "model.streams.segmentation",
            adding={"model.streams.segmentation.encoder": "efficient_sam"},
        ),
        OldKey("model.streams.*.tokenizer", values=OLD_PACKAGED),
        OldKey("model.captioner.tokenizer", values=OLD_PACKAGED),
        OldKey("model.reader.tokenizer", values=OLD_PACKAGED),
    )
    OLD_PARAMETERS = {
        r"^blip\.": "streams.grid.",
        r"^efficient_sam\.": "streams.segmentation.",
        r"^fusion\.heads\.(\w+)\.": r"objectives.\1.head.",
        r"^fusion\.adapter\.grid_projection\.": "fusion.adapter.first_projection.",
        r"^fusion\.adapter\.segmentation_projection\.": "fusion.adapter.projections.segmentation.",
        r"^fusion\.adapter\.segmentation_norm\.": "fusion.adapter.norms.segmentation.",
        r"^fusion\.adapter\.class_partner$": "fusion.adapter.partners.segmentation",
    }
    OLD_TRAINABLE = {
        "fusion.*": ("fusion.*", "objectives.*"),
        "fusion.heads.*": ("objectives.*",),
    }

    EXPORTS = ("transformers", *AUTHORS_MODES)
    SHIPPED = {"mini": f"{PACKAGED}miniature/fusion_encoder.safetensors"}
    """Trained fusion weights in this package, by model type."""

    def __init__(
        self,
        config: PnpVqaFusionConfig,
        vocabulary: AnswerVocabulary | None = None,
        *,
        load_weights: bool = True,
        answering: bool = False,
    ) -> None:
        super().__init__()
        from lavis_ext.encoders.efficient_sam.encoder import EfficientSamConfig
        from lavis_ext.encoders.streams import build_streams, streams_of

        if answering:
            config.check_answering(load_weights=load_weights)
        else:
            config.check_training(load_weights=load_weights)
        self.config = config
        saved = None
        if config.fusion_weights and load_weights:
            saved = TrainedWeights.load(config.fusion_weights, key="model.fusion_weights")
            vocabulary = _vocabulary_of(saved) or vocabulary
        self.vocabulary = vocabulary
        names = list(config.streams)
        self.first = names[0]
        read = {
            self.first,
            *streams_read(config.fusion, names),
            *(name for each in config.fusions.values() for name in streams_read(each, names)),
        }
        self.segmenting = streams_of(config.streams, EfficientSamConfig)[:1] if answering else []
        wanted = [name for name in names if name in {*read, *self.segmenting}]
        encoders = build_streams(config.streams, wanted, "model.streams", load_weights=load_weights)
        # Set as a child under the name of the typed property ``streams``.
        self._modules["streams"] = nn.ModuleDict(encoders)
        self.question_encoder: QuestionReader | None = None
        if (reader := config.question_encoder) is not None:
            self.question_encoder = registry.get_question_encoder_class(reader.encoder)(
                reader if load_weights else reader.unloaded(), "model.question_encoder"
            )
        layouts = {
            name: StreamLayout.of(encoders[name]) if name in encoders else UNREAD for name in names
        }
        from_file = load_weights and saved is None
        self.fusion = FusionNetwork(config.fusion, layouts, load_weights=from_file)
        self.fusions = nn.ModuleDict(
            {
                part: FusionNetwork(
                    each,
                    {part: _layout_of(getattr(config, part)), **_without(layouts, self.first)},
                    f"model.fusions.{part}",
                    load_weights=from_file,
                )
                for part, each in config.fusions.items()
            }
        )
        token_width, asking = encoders[self.first].width, self._question_reader
        words = max(asking.tokenizer.get_vocab().values()) + 1
        sizes = HeadSizes(token_width, asking.text_width, asking.text_layers, vocabulary, words)
        self.objectives = nn.ModuleDict(
            {
                name: registry.get_objective_class(name)(options, sizes)
                for name, options in config.objectives.items()
            }
        )
        for part in config.parts(answering=answering):
            setattr(self, part, _build_part(part, getattr(config, part), load_weights))
        # Not children: they share the modules of their parts.
        self._towers: dict[str, BlipTower] = {
            part: getattr(self, part).tower(self.first)
            for part in FUSED_PARTS
            if hasattr(self, part)
        }
        self.trained_parts = config.trained_parts()
        objectives = self._objectives().values()
        self.trains_fusion = answering or any(each.part is None for each in objectives)
        self.trainable = (
            *(["fusion.*"] if self.trains_fusion else []),
            *(f"fusions.{part}.*" for part in self.trained_parts),
            "objectives.*",
        )
        self._answering = answering
        self._load_reports = [part.load_report for part in self._parts() if part.load_report]
        if saved is not None:
            name = f"fusion weights from {config.fusion_weights}"
            self._load_reports.append(self.load_trained(saved, name))
        self.adapt()
        if answering and config.quantization:
            quantize_linears(self)
        elif answering:
            pack_linears(self)

    @property
    def token_streams(self) -> Mapping[str, Encoder]:
        """The encoders of all tokens that training or answering reads, by stream.

        They are those in ``streams``, and the image encoders of parts with a fusion of their own,
        under the parts' names.
        """
        encoders, towers = self.streams, self._towers
        if self._answering:
            return {**encoders, **{n: each for n, each in towers.items() if n in self.fusions}}
        read = {*self.fusion.reads, self.first} if self.trains_fusion else set()
        for part in self.trained_parts:
            fusion: Any = self.fusions[part]
            read |= {part, *fusion.reads}
        return {name: each for name, each in {**encoders, **towers}.items() if name in read}

    @property
    def streams(self) -> Mapping[str, Encoder]:
        """The encoders in ``model.streams``, without those that neither fusions nor masks need."""
        built: Any = self._modules["streams"]
        return cast(Mapping[str, Encoder], built)

    @property
    def blip(self) -> "BlipEncoder":
        """The first stream's encoder, which also matches questions.

        It is BLIP in every model but those for training with ``question_encoder``.
        """
        encoder: Any = self.streams[self.first]
        return encoder

    @property
    def _question_reader(self) -> QuestionReader:
        return self.blip if self.question_encoder is None else self.question_encoder

    @property
    def load_reports(self) -> list[LoadReport]:
        """Reports of loading weights, one per file."""
        return self._load_reports

    @property
    def metrics(self) -> list[Metric]:
        """Each objective's loss and its other metrics."""
        return [
            metric
            for name, objective in self._objectives().items()
            for metric in prefixed(name, [Metric(LOSS, better="min"), *objective.metrics])
        ]

    @classmethod
    def from_pretrained(cls, model_type: str) -> "PnpVqaFusion":
        """Build a trained model for answering, as LAVIS's ``load_model`` does.

        Args:
            model_type: a type; or fusion weights that training wrote, a path or the name of a
                repository on the hub, which know their config. A type whose trained fusion isn't
                part of this package has an untrained one, which a warning tells.
        """
        trained = model_type if _names_weights(model_type) else cls.SHIPPED.get(model_type)
        given = {"fusion_weights": trained} if trained else {"model_type": model_type}
        section = cls.default_section(OmegaConf.create(given))
        section.fusion_weights = trained
        config = typed(cls.Config, section, "model")
        cls.warn_if_untrained(config)
        model: PnpVqaFusion = cls.from_config(config, answering=True)
        return model

    @classmethod
    def warn_if_untrained(cls, config: PnpVqaFusionConfig) -> None:
        """Warn of a section whose fusion is untrained; see ``untrained_note``."""
        if note := cls.untrained_note(config):
            warnings.warn(note, stacklevel=3)

    @classmethod
    def untrained_note(cls, config: PnpVqaFusionConfig) -> str | None:
        """What an untrained fusion means for answers; None for one that is trained or reads BLIP
        alone."""
        if config.fusion_weights:
            return None
        kind = config.model_type
        fusions = [config.fusion, *config.fusions.values()]
        fusing = [f for f in fusions if registry.get_fusion_class(f.name).reads != "first"]
        if not all(each.gate for each in fusing):
            return (
                f"no fusion weights are given, and the fusion of {kind} is untrained and has no "
                "gate; its answers mean nothing. Give weights."
            )
        if fusing:
            return (
                f"no fusion weights are given, so the gate of {kind} is closed, and fused features "
                "are those of its first stream. Give weights to see what a trained fusion does."
            )
        return None

    @classmethod
    def default_section(cls, given: DictConfig) -> DictConfig:
        """Defaults that the section ``given`` is merged over.

        With ``fusion_weights`` they are the section that the weights were trained with, otherwise
        the default config of ``model_type``. They exclude the options of a fusion of another name,
        and the objectives if ``given`` has its own. Raises UserError if neither is given, or if
        they disagree.
        """
        if given.get("fusion_weights"):
            path = str(given.fusion_weights)
            saved = TrainedWeights.load(path, key="model.fusion_weights", tensors=False)
            tree = {"model": copy.deepcopy(saved.config["model"])}
            rename_old_keys(tree, cls.OLD_KEYS)
            cls.complete_saved(tree["model"])
            defaults = OmegaConf.create(tree["model"])
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
                f"{', '.join(cls.types())}."
            )
        _drop_other_fusion(defaults, "fusion", given)
        if OmegaConf.is_dict(defaults.get("fusions")) and OmegaConf.is_dict(given.get("fusions")):
            for part in defaults.fusions:
                _drop_other_fusion(defaults.fusions, part, given.fusions)
        if given.get("objectives") is not None:
            defaults.objectives = {}
        assert isinstance(defaults, DictConfig)
        return defaults

    @classmethod
    def needs_weights(cls, config: PnpVqaFusionConfig) -> bool:
        """False for BLIP's streams alone, which have nothing to train."""
        has_more = config.objectives or config.lora or config.fusions
        return bool(has_more) or not isinstance(config.fusion, FirstOnlyConfig)

    @classmethod
    def parts_to_answer(cls, config: PnpVqaFusionConfig) -> list[str]:
        """Those of captioner, reader and vqa that no objective trains through."""
        return [part for part in cls.answering_parts if part not in config.trained_parts()]

    @classmethod
    def complete_saved(cls, section: dict[str, Any]) -> None:
        """Add version 0.1's epsilon to BLIP and captioner, and its dropout to attention."""
        from lavis_ext.encoders.blip.encoder import complete_saved_sizes

        streams = section.get("streams")
        for stream in streams.values() if isinstance(streams, dict) else ():
            if isinstance(stream, dict) and stream.get("encoder") == "blip":
                complete_saved_sizes(stream)
        if isinstance(section.get("captioner"), dict):
            complete_saved_sizes(section["captioner"])
        if isinstance(section.get("fusion"), dict):
            _complete_saved_dropout("fusion", section["fusion"].get("name"), section["fusion"])
        for name, objective in (section.get("objectives") or {}).items():
            _complete_saved_dropout("objective", name, objective)

    def encode(self, samples: QuestionBatch) -> dict[str, Tokens]:
        """Tokens by stream of the batch's images, from its stored features if it has any."""
        return self._encode(samples, self.token_streams)

    def _encode(self, samples: QuestionBatch, encoders: Mapping[str, Encoder]) -> dict[str, Tokens]:
        if "tokens" in samples:
            return {
                name: Tokens(stored.restored(), stored.grid, encoders[name].prefix)
                for name, stored in samples["tokens"].items()
                if name in encoders
            }
        found = {}
        for name, encoder in encoders.items():
            images = samples["images"][encoder.picture or name]
            with no_grad_if_constant(encoder.token_modules(), images):
                found[name] = encoder(images)
        return found

    def compile_parts(self, backend: str) -> None:
        """Compile encoders, fusion and the objectives' decoder layers with a ``backend`` of torch.

        Code that depends on strings or the number of questions isn't compiled. So there are few
        shapes: the number of images, and padded lengths of their rows of questions.
        """
        options = {"backend": backend, "dynamic": False}
        for encoder in {**self.streams, **self._towers}.values():
            encoder.compile_parts(**options)
        for fusion in (self.fusion, *self.fusions.values()):
            fusion.compile(**options)
        for module in self.objectives.modules():
            if isinstance(module, PackedDecoderLayer):
                module.compile(**options)

    def fuse(self, samples: QuestionBatch) -> Tensor:
        """Fused tokens, float [I, P+N, D], of I images: P prefix tokens and N patches."""
        return self._fused(self._encode(samples, self.streams))

    def _fused(self, tokens: Mapping[str, Tokens]) -> Tensor:
        fused: Tensor = self.fusion(tokens)
        return fused

    def forward(self, samples: QuestionBatch) -> StepOutput:
        """Weighted loss sums by objective, sums of metrics, and the number of questions."""
        return self._losses(self._batch(samples))

    def _batch(self, samples: QuestionBatch) -> FusedBatch:
        """The batch with the fused tokens that objectives read."""
        tokens = self.encode(samples)
        parts = {
            name: FusedPart(getattr(self, name), self._part_tokens(name, tokens, samples))
            for name in self.trained_parts
        }
        fused = unfused = None
        if self.trains_fusion:
            fused, unfused = self._fused(tokens), tokens[self.first].values
        return FusedBatch(fused, unfused, samples, self._question_reader, parts)

    def part_tokens(self, name: str, samples: QuestionBatch) -> Tensor:
        """Image tokens [I, 1+N, D] of the part ``name``, fused if it has a fusion of its own."""
        read: set[str] = set()
        if name in self.fusions:
            fusion: Any = self.fusions[name]
            read = {name, *fusion.reads}
        streams = {each: encoder for each, encoder in self.token_streams.items() if each in read}
        return self._part_tokens(name, self._encode(samples, streams), samples)

    def _part_tokens(
        self, name: str, tokens: Mapping[str, Tokens], samples: QuestionBatch
    ) -> Tensor:
        if name in self.fusions:
            found: Tensor = self.fusions[name](tokens)
        else:
            found = self._towers[name].encode(samples["images"][self.first])
        return found

    @torch.no_grad()
    def evaluate(self, samples: QuestionBatch) -> tuple[dict[str, Tensor], list[str] | None]:
        """Sums of metrics and of the total loss, and answers [Q] of an objective that predicts.

        The answers are None for a model without one.
        """
        batch = self._batch(samples)
        answers = None
        for objective in self._objectives().values():
            answers = answers or objective.predict(batch)
        output = self._losses(batch)
        return {LOSS: total_loss(output).detach(), **output.report}, answers

    @torch.no_grad()
    def locate(self, samples: QuestionBatch, block_num: int | None = None) -> "Located":
        """Heat maps, points, masks and refined heat maps of the batch's questions.

        Needs a model built for answering, and a batch with images. Without a stream of EfficientSAM
        there are no masks, and refined heat maps equal the raw ones. See
        :func:`lavis_ext.models.pnp_vqa.answering.locate`. Raises UserError for a batch without
        images.
        """
        self._check_answers(samples)
        return self._locate(self._encode(samples, self.streams), samples, block_num)

    def _check_answers(self, samples: QuestionBatch) -> None:
        if self.config.quantization:
            self._check_quantized()
        check_images(samples)

    def _check_quantized(self) -> None:
        """Raise UserError where quantized layers would silently compute in another type."""
        weight, narrow = next(self.parameters()), torch.get_autocast_dtype("cpu")
        quantized = f"model.quantization is {self.config.quantization}"
        if weight.device.type != "cpu":
            raise UserError(
                f"{quantized}, which is computed on a CPU, and the model is on {weight.device}. "
                "Set run.device=cpu, or model.quantization=null and run.amp=true."
            )
        if weight.dtype != torch.float32:
            raise UserError(
                f"{quantized}, made of float32 weights, and the model's are {weight.dtype}. Leave "
                "them in float32 (no .half()), or set model.quantization=null."
            )
        if torch.is_autocast_enabled("cpu") and narrow != torch.bfloat16:
            raise UserError(
                f"{quantized}, which works in float32 or under bfloat16 autocast, not {narrow}. "
                "Set another autocast type, or model.quantization=null."
            )

    def _locate(
        self, tokens: Mapping[str, Tokens], samples: QuestionBatch, block_num: int | None
    ) -> "Located":
        from lavis_ext.models.pnp_vqa.answering import LocatingConfig, SegmentedImages, locate

        matching = self.config.question_matching
        if block_num is not None:
            matching = replace(matching, block_num=block_num)
        config = LocatingConfig(matching, self.config.points, self.config.refined_heat)
        segmented = None
        for name in self.segmenting:
            sam: Any = self.streams[name]
            height, width = samples["images"][name].shape[-2:]
            segmented = SegmentedImages(
                sam, tokens[name].values, tokens[name].grid, (height, width)
            )
        return locate(self.blip, self._fused(tokens), segmented, samples, config)

    @torch.no_grad()
    def answer(self, samples: QuestionBatch, **given: Any) -> "PipelineOutput":
        """Answers of the whole pipeline, with captions, heat maps, points and masks.

        With ``answerer: vqa`` there are no captions, and heat maps only show where question
        matching looks. Needs a model built for answering. ``given`` are arguments of
        ``predict_answers``. Raises UserError as ``predict_answers`` does.
        """
        from lavis_ext.models.pnp_vqa.answering import answer, answer_directly, override

        self._check_answers(samples)
        tokens = self.encode(samples)
        located = self._locate(tokens, samples, given.get("block_num"))
        if self.config.answerer == VQA:
            _check_no_reading(given)
            vocabulary = None if self.vocabulary is None else self.vocabulary.answers
            fused = self._part_tokens(VQA, tokens, samples)
            return answer_directly(located, fused, self.vqa, samples, vocabulary)
        sampling, reading = override(self.config.captioner.sampling, self.config.reader, given)
        return answer(
            located,
            self._part_tokens("captioner", tokens, samples),
            self.captioner,
            self.reader,
            samples,
            sampling,
            reading,
        )

    def generate(
        self, images: Tensor, prompts: Sequence[str], decoding: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The pipeline's answer to the question about each image.

        Args:
            images: float [B, 3, H, W] in 0..1, resized for each stream.
            prompts: B questions. Their text is their id, which seeds the captions.
            decoding: arguments of ``predict_answers``.

        Raises UserError for an unknown argument, and as ``predict_answers`` does.
        """
        given = dict(decoding or {})
        for name in given:
            if name not in DECODING:
                raise UserError(
                    f"decoding: there is no option '{name}'. There are: {', '.join(DECODING)}."
                    f"{nearest(name, DECODING)}"
                )
        samples: QuestionBatch = {
            "images": {
                name: square(images, encoder.image_size) for name, encoder in self.streams.items()
            },
            "image_index": torch.arange(len(images)),
            "text_input": list(prompts),
            "ids": list(prompts),
        }
        return self.answer(samples, **given).answers

    def score_targets(
        self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]
    ) -> TargetScores:
        """Raises UserError, because answers are not differentiable with respect to images."""
        raise UserError(
            "pnp_vqa_fusion has sampled captions between image and answer, and no gradient passes "
            "through text. Score captions with the model's `captioner`."
        )

    def _losses(self, batch: FusedBatch) -> StepOutput:
        sums: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for name, objective in self._objectives().items():
            losses, metrics = objective(batch)
            total = losses.float().sum()
            sums[name] = objective.config.weight * total
            report[f"{name}_loss"] = total.detach()
            report |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return StepOutput(sums, report, len(batch))

    def with_examples(self, samples: QuestionBatch, times: int) -> QuestionBatch:
        """Repeat each question, reworded because equal texts would be encoded only once."""
        repeated: dict[str, Any] = {}
        if "statement" in samples:
            repeated["statement"] = samples["statement"] * times
        if "matched_input" in samples:
            repeated["matched_input"] = _reworded(samples["matched_input"], times)
        return {
            **samples,
            **repeated,  # type: ignore[typeddict-item]
            "image_index": samples["image_index"].repeat(times),
            "text_input": _reworded(samples["text_input"], times),
            "mismatched_input": _reworded(samples["mismatched_input"], times),
            "answer": samples["answer"] * times,
            "ids": samples["ids"] * times,
            "global_size": times * samples["global_size"],
        }

    def may_leave_unused(self, trained: Mapping[str, Tensor]) -> bool:
        """Whether parameters besides objectives and the fusions that they read are trained.

        BLIP's contrastive projections get no gradient.
        """
        own = tuple(pattern.removesuffix("*") for pattern in self.trainable)
        return not all(name.startswith(own) for name in trained)

    def shard_units(self) -> list[str]:
        """Blocks of the reader and of the captioner's decoder, if the model has them."""
        return list(ANSWERING_BLOCKS) if hasattr(self, "reader") else []

    def exported_state(self) -> dict[str, Tensor]:
        """Tensors for a file of fusion weights, by parameter name.

        These are fusion and objectives, all other trained parameters, and encoders without a
        weights file of their own.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        elsewhere = tuple(self._parts_with_weights())
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in trained or not name.startswith(elsewhere)
        }

    def exported_facts(self) -> dict[str, Any]:
        """The answer vocabulary, for a file of fusion weights."""
        return {"vocabulary": self.vocabulary.as_dict() if self.vocabulary else None}

    def may_lack(self) -> list[str]:
        """Patterns of the parts that have their own weights files."""
        return [f"{part}*" for part in self._parts_with_weights()]

    def new_parts(self, state: Mapping[str, Tensor]) -> list[str]:
        """Gated fusions of parts that the file was trained without."""
        gated = [part for part, each in self.config.fusions.items() if each.gate]
        known = {".".join(name.split(".")[:2]) for name in state}
        return [f"fusions.{part}.*" for part in gated if f"fusions.{part}" not in known]

    def unused_parts(self, state: Mapping[str, Tensor]) -> list[str]:
        """Objectives that the file was trained with and the config doesn't name."""
        known = {name.split(".")[1] for name in state if name.startswith("objectives.")}
        return [f"objectives.{name}.*" for name in sorted(known - {*self.objectives})]

    def export(self, target: str, out: Path) -> str:
        """Write BLIP as a folder of transformers, or DIFNet as a file of its authors' code.

        Returns a description of the contents. Raises UserError for a fusion other than DIFNet.
        """
        if target == "transformers":
            self.blip.save_for_transformers(out)
            return "BLIP as BlipForImageTextRetrieval, with its processor"
        save_for_authors(self.fusion, AUTHORS_MODES[target], out)
        return "DIFNet's encoder by its authors' names; adapter and gate have no place there"

    def _parts_with_weights(self) -> list[str]:
        """Name prefixes of the parts that have their own weights files."""
        loaded = [
            f"streams.{name}"
            for name, config in self.config.streams.items()
            if config.weights is not None
        ]
        if self.question_encoder is not None and self.config.question_encoder.weights is not None:
            loaded.append("question_encoder")
        return [f"{part}." for part in (*loaded, *self.answering_parts)]

    def _parts(self) -> list[Any]:
        optional = ("question_encoder", *self.answering_parts)
        parts = (getattr(self, name, None) for name in optional)
        return [
            *self.streams.values(),
            self.fusion,
            *self.fusions.values(),
            *(part for part in parts if part is not None),
        ]

    def _objectives(self) -> dict[str, Objective]:
        return dict(self.objectives.items())  # type: ignore[arg-type]


def _build_part(name: str, config: Any, load_weights: bool) -> nn.Module:
    """Captioner, reader or vqa, with random weights unless ``load_weights``."""
    # Imported here because they take a second, which `import lavis_ext` doesn't need.
    from lavis_ext.decoders.blip_captioner import BlipCaptioner
    from lavis_ext.decoders.blip_vqa import BlipVqa
    from lavis_ext.decoders.fid_reader import FidReader

    classes: dict[str, Any] = {"captioner": BlipCaptioner, READER: FidReader, VQA: BlipVqa}
    part: nn.Module = classes[name](config if load_weights else replace(config, weights=None))
    return part


def _layout_of(sizes: Any) -> StreamLayout:
    """Layout of the image tokens of a part of BLIP, whose class token comes first."""
    return StreamLayout(sizes.vision_width, sizes.grid, 1)


def _without(layouts: Mapping[str, StreamLayout], name: str) -> dict[str, StreamLayout]:
    return {other: layout for other, layout in layouts.items() if other != name}


def _drop_other_fusion(defaults: Any, key: str, given: Any) -> None:
    """Drop the default options of a fusion of another name than the one ``given``."""
    fusion = given.get(key)
    name = fusion.get("name") if OmegaConf.is_dict(fusion) else None
    if name not in (None, defaults[key].name):
        # Only the option ``gate: false`` applies to a fusion of another name too.
        ungated = {"gate": False} if defaults[key].get("gate") is False else {}
        defaults[key] = {"name": name, **ungated}


def _check_no_reading(given: Mapping[str, Any]) -> None:
    """Raise UserError for arguments of captioner and reader, which don't answer."""
    theirs = [name for name, value in given.items() if name != "block_num" and value is not None]
    if theirs:
        raise UserError(
            f"predict_answers: {', '.join(theirs)} are for captioner and reader, and "
            f"model.answerer is {VQA}, which takes its options from model.vqa."
        )


def _names_weights(name: str) -> bool:
    """Whether it is a place of weights rather than a model type: a path or a hub name."""
    return name.startswith(PACKAGED) or "/" in name or "." in name or is_file(Path(name))


def _vocabulary_of(weights: TrainedWeights) -> AnswerVocabulary | None:
    """The vocabulary in a file of fusion weights. Raises UserError if it is damaged."""
    given = weights.facts.get("vocabulary")
    if given is None:
        return None
    try:
        return AnswerVocabulary.from_dict(given)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"model.fusion_weights: its vocabulary is damaged ({error!r:.120}); copy or train the "
            "file again."
        ) from None


def _complete_saved_dropout(kind: str, name: Any, section: Any) -> None:
    """Let ``dropout`` apply to attention probabilities too, in a section saved by version 0.1."""
    with suppress(UserError):  # of an unknown name, which is reported where it is used
        options = [field.name for field in fields(schema_of(kind, name, kind))]
        if "attention_dropout" in options and isinstance(section, dict) and "dropout" in section:
            section.setdefault("attention_dropout", section["dropout"])


def _reworded(texts: list[Any], times: int) -> list[Any]:
    """The texts, followed by copies with their words rotated by 1 to ``times`` - 1 places."""
    words = [text.split() for text in texts]
    return [" ".join(each[n:] + each[:n]) for n in range(times) for each in words]
