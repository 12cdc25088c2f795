"""Config of the model ``pnp_vqa_fusion``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.config.typed import schema_of, typed
from lavis_ext.fusion.base import FusionConfig
from lavis_ext.models.base import ModelConfig
from lavis_ext.registry import registry


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
    question_matching: Any = option(dict, "Heat maps of questions (QuestionMatchingConfig).")
    points: Any = option(dict, "Points in the heat map (PointsConfig).")
    refined_heat: Any = option(dict, "Refinement of the heat map by masks (RefinedHeatConfig).")
    captioner: Any = option(dict, "The captioner (CaptionerConfig).")
    reader: Any = option(dict, "The reader (ReaderConfig).")
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
        }.items():
            setattr(self, part, typed(schema, getattr(self, part), f"{where}.{part}"))
        named = self.fusion.get("name") if isinstance(self.fusion, Mapping) else None
        schema = schema_of("fusion", named or FusionConfig().name, f"{where}.fusion.name")
        self.fusion = typed(schema, self.fusion, f"{where}.fusion")
        for name, options in self.objectives.items():
            key = f"{where}.objectives.{name}"
            schema = schema_of("objective", name, key)
            self.objectives[name] = typed(schema, {} if options is None else options, key)
            if self.question_encoder and registry.get_objective_class(name).needs_blip:
                raise UserError(
                    f"{key}: this objective matches questions with BLIP's text encoder, which "
                    f"doesn't read them with {where}.question_encoder. Leave one of the two out."
                )

    def check_training(self, where: str = "model") -> None:
        """Raise UserError for a model without objectives, which has no training loss."""
        if not self.objectives:
            raise UserError(
                f"{where}.objectives is empty, and the fusion is trained by their losses; name at "
                f"least one of: {', '.join(registry.list_objectives())}."
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
        for part in ("captioner", "reader"):
            if load_weights and getattr(self, part).weights is None:
                raise UserError(
                    f"{where}.{part}.weights is null, and a random {part} answers nothing useful. "
                    "Give a hub name, a local path or a URL."
                )
        if self.refined_heat.weight and not streams_of(self.streams, EfficientSamConfig):
            raise UserError(
                f"{where}.streams: the pipeline needs masks, and no stream's encoder is "
                f"efficient_sam; add such a stream, or set {where}.refined_heat.weight to 0, which "
                "leaves heat maps raw."
            )
        first, blip = next(iter(self.streams.items()))
        check_block_num(self.question_matching, blip, f"{where}.question_matching")
        for name in ("image_size", "patch_size"):
            matching, captioning = getattr(blip, name), getattr(self.captioner, name)
            if matching != captioning:
                raise UserError(
                    f"{where}.captioner.{name} is {captioning} and "
                    f"{where}.streams.{first}.{name} {matching}; they must be equal, because "
                    "the captioner's patches are chosen by heat maps of question matching."
                )


def _check_first_is_blip(streams: Mapping[str, Any], where: str) -> None:
    from lavis_ext.encoders.blip.encoder import BlipEncoderConfig

    first, config = next(iter(streams.items()))
    if not isinstance(config, BlipEncoderConfig):
        raise UserError(
            f"{where}.{first}.encoder is {config.encoder}. The first stream must be blip: "
            "questions are read and matched by its text encoder. Put the blip stream first; or, to "
            "train the objective `answer` without the pipeline, set model.question_encoder."
        )
