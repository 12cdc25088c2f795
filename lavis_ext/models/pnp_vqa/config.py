"""Config of the model ``pnp_vqa_fusion``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.schema import option
from lavis_ext.config.typed import schema_of, typed
from lavis_ext.fusion.base import FusionConfig
from lavis_ext.models.base import ModelConfig
from lavis_ext.registry import registry

READER, VQA = "reader", "vqa"
FUSED_PARTS = ("captioner", VQA)
"""Parts with an image encoder of their own, whose tokens a fusion of theirs may fuse."""


@dataclass
class PnpVqaFusionConfig(ModelConfig):
    """The section ``model``. The options of a part are those of the class in parentheses."""

    arch: str = option("pnp_vqa_fusion", "Name of the model in the registry.")
    model_type: str | None = option(None, "Default config that the section is merged over.")
    streams: dict[str, Any] = option(
        dict,
        "Encoders by stream, each with `encoder`, its name in the registry, and its options. "
        "Fused tokens have the layout of the first stream.",
    )
    question_encoder: Any = option(
        None,
        "Reads the questions for the objectives: `encoder`, its name in the registry, and its "
        "options. null is the text encoder of the first stream, which is BLIP then, as the "
        "pipeline needs it.",
    )
    fusion: Any = option(dict, "The fusion: `name`, its name in the registry, and its options.")
    fusions: dict[str, Any] = option(
        dict,
        "Fusions of other parts, `captioner` and `vqa`, each as `fusion`: the image tokens of the "
        "part's own encoder, in the place of the first stream, with the streams after the first.",
    )
    question_matching: Any = option(dict, "Heat maps of questions (QuestionMatchingConfig).")
    points: Any = option(dict, "Points in the heat map (PointsConfig).")
    refined_heat: Any = option(dict, "Refinement of the heat map by masks (RefinedHeatConfig).")
    captioner: Any = option(dict, "The captioner (CaptionerConfig).")
    reader: Any = option(dict, "The reader (ReaderConfig).")
    vqa: Any = option(dict, "BLIP's question answering (BlipVqaConfig).")
    answerer: str = option(
        READER,
        "What answers: the reader, from captions, or vqa, BLIP's question answering.",
        choices=(READER, VQA),
    )
    objectives: dict[str, Any] = option(dict, "Objectives by name, each with its options.")
    quantization: str | None = option(
        None,
        "int8 computes the linear layers in int8 when answering, on an x86 CPU; by default in "
        "float32, or bfloat16 with run.amp.",
        choices=("int8",),
    )
    fusion_weights: str | None = option(
        None, "File of trained weights to load.", files=WEIGHT_FILES
    )

    def check_together(self, where: str) -> None:
        """Type the section of each part by its config class. Raises UserError."""
        # Imported here because they take a second, which `import lavis_ext` doesn't need.
        from lavis_ext.decoders.blip_captioner import CaptionerConfig
        from lavis_ext.decoders.blip_vqa import BlipVqaConfig
        from lavis_ext.decoders.fid_reader import ReaderConfig
        from lavis_ext.encoders.streams import typed_question_encoder, typed_streams
        from lavis_ext.models.pnp_vqa.points import PointsConfig
        from lavis_ext.models.pnp_vqa.question_matching import QuestionMatchingConfig
        from lavis_ext.models.pnp_vqa.refined_heat import RefinedHeatConfig

        self.streams = dict(typed_streams(self.streams, f"{where}.streams"))
        if self.question_encoder is None:
            _check_first_is_blip(self.streams, f"{where}.streams")
        else:
            self.question_encoder = typed_question_encoder(
                self.question_encoder, f"{where}.question_encoder"
            )
        for part, schema in {
            "question_matching": QuestionMatchingConfig,
            "points": PointsConfig,
            "refined_heat": RefinedHeatConfig,
            "captioner": CaptionerConfig,
            "reader": ReaderConfig,
            VQA: BlipVqaConfig,
        }.items():
            setattr(self, part, typed(schema, getattr(self, part), f"{where}.{part}"))
        self.fusion = _typed_fusion(self.fusion, f"{where}.fusion")
        for name, options in self.objectives.items():
            key = f"{where}.objectives.{name}"
            schema = schema_of("objective", name, key)
            self.objectives[name] = typed(schema, {} if options is None else options, key)
            objective = registry.get_objective_class(name)
            if self.question_encoder and objective.reads_with_blip(self.objectives[name]):
                raise UserError(
                    f"{key}: here BLIP reads questions with their images, and "
                    f"{where}.question_encoder reads them in its place. Leave one of the two out."
                )
        for name in self.fusions:
            self._check_fused_part(name, where)
            self.fusions[name] = _typed_fusion(self.fusions[name], f"{where}.fusions.{name}")
        for name in self.objectives:
            part = registry.get_objective_class(name).part
            if part is not None and part not in self.fusions:
                raise UserError(
                    f"{where}.objectives.{name} trains {where}.fusions.{part}, which is missing. "
                    f"Add it, such as {where}.fusions.{part}.name=difnet, or remove the objective."
                )

    @property
    def captions_wanted(self) -> int:
        """Captions of each question; 0 if it is answered without any."""
        return int(self.captioner.sampling.num_captions) if self.answerer == READER else 0

    def trained_parts(self) -> list[str]:
        """Parts that objectives train a fusion through."""
        parts = [registry.get_objective_class(name).part for name in self.objectives]
        return [name for name in FUSED_PARTS if name in parts]

    def parts(self, *, answering: bool) -> list[str]:
        """Parts that a model of this section has, besides its streams and fusions."""
        answered_by = {READER: ["captioner", READER], VQA: [VQA]}[self.answerer]
        return list(dict.fromkeys([*(answered_by if answering else []), *self.trained_parts()]))

    def unused_sections(self) -> list[str]:
        """Sections of parts that neither train nor answer; see ``weight_sources``."""
        used = self.parts(answering=True)
        return [part for part in ("captioner", READER, VQA) if part not in used]

    def _check_fused_part(self, name: str, where: str) -> None:
        """Raise UserError for a part that has no image encoder or not the first stream's images."""
        key = f"{where}.fusions.{name}"
        if name not in FUSED_PARTS:
            raise UserError(
                f"{key}: there is no such part.{nearest(name, FUSED_PARTS)} Parts with a fusion of "
                f"their own are: {', '.join(FUSED_PARTS)}."
            )
        first, blip = next(iter(self.streams.items()))
        if name in self.streams:
            raise UserError(
                f"{where}.streams.{name} has the name of a part with a fusion of its own ({key}); "
                "rename the stream."
            )
        if len(self.streams) < 2:
            raise UserError(
                f"{key} fuses the {name}'s image tokens with the streams after the first, and "
                f"{where}.streams has only {first}; add another, or remove the fusion."
            )
        side = getattr(self, name).image_size
        if side != blip.image_size:
            raise UserError(
                f"{where}.{name}.image_size is {side} and {where}.streams.{first}.image_size "
                f"{blip.image_size}; they must be equal, because both encode the same image. "
                "Learned positions of another size are interpolated."
            )

    def check_training(self, where: str = "model", *, load_weights: bool = True) -> None:
        """Raise UserError for a model without objectives, which has no training loss.

        Also for a quantized one, and for one that is trained through an untrained part; without
        ``load_weights`` parts may be untrained.
        """
        if self.quantization:
            raise UserError(
                f"{where}.quantization is {self.quantization}, in which a model answers, but isn't "
                f"trained or scored without the pipeline. Set {where}.quantization=null here, and "
                f"give {self.quantization} to a task that answers, or to `ask`."
            )
        if not self.objectives:
            raise UserError(
                f"{where}.objectives is empty, and the fusion is trained by their losses; name at "
                f"least one of: {', '.join(registry.list_objectives())}."
            )
        self._check_weights(self.trained_parts() if load_weights else [], where)

    def _check_weights(self, parts: Iterable[str], where: str) -> None:
        for part in parts:
            if getattr(self, part).weights is None:
                raise UserError(
                    f"{where}.{part}.weights is null, and a random {part} answers nothing useful. "
                    "Give a hub name, a local path or a URL."
                )

    def check_answering(self, where: str = "model", *, load_weights: bool = True) -> None:
        """Raise UserError for a pipeline with untrained parts or parts that don't fit together.

        Training doesn't need this. ``where`` is the key of the section; without ``load_weights``
        parts may be untrained.
        """
        from lavis_ext.encoders.efficient_sam.encoder import EfficientSamConfig
        from lavis_ext.encoders.streams import streams_of
        from lavis_ext.models.pnp_vqa.question_matching import check_block_num

        _check_first_is_blip(self.streams, f"{where}.streams")
        self._check_weights(self.parts(answering=True) if load_weights else [], where)
        if self.refined_heat.weight and not streams_of(self.streams, EfficientSamConfig):
            raise UserError(
                f"{where}.streams: the pipeline needs masks, and no stream's encoder is "
                f"efficient_sam; add such a stream, or set {where}.refined_heat.weight to 0, which "
                "leaves heat maps raw."
            )
        first, blip = next(iter(self.streams.items()))
        check_block_num(self.question_matching, blip, f"{where}.question_matching")
        if self.answerer != READER:
            return
        for name in ("image_size", "patch_size"):
            matching, captioning = getattr(blip, name), getattr(self.captioner, name)
            if matching != captioning:
                raise UserError(
                    f"{where}.captioner.{name} is {captioning} and "
                    f"{where}.streams.{first}.{name} {matching}; they must be equal, because "
                    "the captioner's patches are chosen by heat maps of question matching."
                )


def _typed_fusion(section: Any, where: str) -> Any:
    named = section.get("name") if isinstance(section, Mapping) else None
    schema = schema_of("fusion", named or FusionConfig().name, f"{where}.name")
    return typed(schema, section, where)


def _check_first_is_blip(streams: Mapping[str, Any], where: str) -> None:
    from lavis_ext.encoders.blip.encoder import BlipEncoderConfig

    first, config = next(iter(streams.items()))
    if not isinstance(config, BlipEncoderConfig):
        raise UserError(
            f"{where}.{first}.encoder is {config.encoder}. The first stream must be blip: "
            "questions are read and matched by its text encoder. Put the blip stream first; or, to "
            "train the objective `answer` without the pipeline, set model.question_encoder."
        )
