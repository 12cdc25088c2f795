"""The section ``model`` of ``pnp_vqa_fusion``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.config.typed import schema_of, typed
from lavis_ext.fusion.base import FusionConfig


@dataclass
class PnpVqaFusionConfig:
    """The section ``model``. The parts' sections are typed as the classes in brackets."""

    arch: str = option("pnp_vqa_fusion", "The model's name in the registry.")
    model_type: str | None = option(None, "Which default config the section starts from.")
    streams: dict[str, Any] = option(
        dict,
        "Encoders by stream, each with `encoder`, its name in the registry, and its options. The "
        "fused tokens have the layout of the first.",
    )
    fusion: Any = option(dict, "The fusion: its name in the registry, and its own options.")
    question_matching: Any = option(dict, "Where heat is read (QuestionMatchingConfig).")
    points: Any = option(dict, "Points in the heat map (PointsConfig).")
    refined_heat: Any = option(dict, "What masks do to the heat map (RefinedHeatConfig).")
    captioner: Any = option(dict, "The captioner (CaptionerConfig).")
    reader: Any = option(dict, "The reader (ReaderConfig).")
    objectives: dict[str, Any] = option(dict, "Objectives by name, each with its options.")
    fusion_weights: str | None = option(None, "File that training wrote, to be loaded.")

    def check_together(self, where: str) -> None:
        """Give the sections of the parts the types that their classes own."""
        # Imported here because they take a second that `import lavis_ext` need not wait for.
        from lavis_ext.decoders.blip_captioner import CaptionerConfig
        from lavis_ext.decoders.fid_reader import ReaderConfig
        from lavis_ext.encoders.streams import typed_streams
        from lavis_ext.models.pnp_vqa.points import PointsConfig
        from lavis_ext.models.pnp_vqa.question_matching import QuestionMatchingConfig
        from lavis_ext.models.pnp_vqa.refined_heat import RefinedHeatConfig

        self.streams = dict(typed_streams(self.streams, f"{where}.streams"))
        _refuse_other_first(self.streams, f"{where}.streams")
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

    def check_answering(self, where: str = "model", *, load_weights: bool = True) -> None:
        """Raise UserError for parts that can't answer together, or were never trained.

        Training needs none of this, so it's asked only where the whole pipeline is built.
        """
        from lavis_ext.encoders.efficient_sam.encoder import EfficientSamConfig
        from lavis_ext.encoders.streams import streams_of
        from lavis_ext.models.pnp_vqa.question_matching import check_block_num

        for part in ("captioner", "reader"):
            if load_weights and getattr(self, part).weights is None:
                raise UserError(
                    f"{where}.{part}.weights is null, and answers of a random {part} mean nothing. "
                    "Give a hub name, a local path or a URL."
                )
        if not streams_of(self.streams, EfficientSamConfig):
            raise UserError(
                f"{where}.streams: the pipeline makes masks, and no stream's encoder is "
                "efficient_sam; add such a stream."
            )
        first, blip = next(iter(self.streams.items()))
        check_block_num(self.question_matching, blip, f"{where}.question_matching")
        for name in ("image_size", "patch_size"):
            matching, captioning = getattr(blip, name), getattr(self.captioner, name)
            if matching != captioning:
                raise UserError(
                    f"{where}.captioner.{name} is {captioning} and {where}.streams.{first}.{name} "
                    f"{matching}; "
                    "they must be equal, because the captioner sees the patches that question "
                    "matching heats."
                )


def _refuse_other_first(streams: Mapping[str, Any], where: str) -> None:
    from lavis_ext.encoders.blip.encoder import BlipEncoderConfig

    first, config = next(iter(streams.items()))
    if not isinstance(config, BlipEncoderConfig):
        raise UserError(
            f"{where}.{first}.encoder is {config.encoder}. The first stream must be blip: "
            "questions are read and matched by its text encoder. Put the blip stream first."
        )
