"""The sections ``streams`` and ``question_encoder`` of a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import A_MAPPING, schema_of, shown, typed

# Imported to be registered.
from lavis_ext.encoders import bert, timm  # noqa: F401
from lavis_ext.encoders.base import Encoder, EncoderConfig
from lavis_ext.encoders.blip import encoder as blip  # noqa: F401
from lavis_ext.encoders.efficient_sam import encoder as efficient_sam  # noqa: F401
from lavis_ext.encoders.questions import QuestionEncoderConfig
from lavis_ext.registry import registry

RESERVED = frozenset(dir(nn.ModuleDict()))
"""Module attributes, which can't be names of its children."""


def typed_streams(sections: Any, where: str) -> dict[str, EncoderConfig]:
    """Convert each stream's section to its encoder's ``Config``.

    Raises UserError for a stream's name that can't be part of a parameter's name, and for a section
    without a registered encoder or with unknown options.
    """
    if not isinstance(sections, Mapping) or not sections:
        raise UserError(
            f"{where} is {shown(sections)}; it must be {A_MAPPING}, one encoder per stream."
        )
    found = {}
    for name, section in sections.items():
        key = f"{where}.{name}"
        if not str(name).isidentifier() or name in RESERVED:
            raise UserError(f"{key}: invalid name of a stream; use letters only.")
        if isinstance(section, EncoderConfig):
            found[str(name)] = section
            continue
        if not isinstance(section, Mapping) or not section.get("encoder"):
            raise UserError(
                f"{key}.encoder is missing; it is one of: {', '.join(registry.list_encoders())}."
            )
        schema = schema_of("encoder", section["encoder"], f"{key}.encoder")
        found[str(name)] = typed(schema, section, key)
    return found


def typed_question_encoder(section: Any, where: str) -> QuestionEncoderConfig:
    """Convert the section to its question encoder's ``Config``.

    Raises UserError for one without a registered question encoder or with unknown options.
    """
    if isinstance(section, QuestionEncoderConfig):
        return section
    if not isinstance(section, Mapping):
        raise UserError(f"{where} is {shown(section)}; it must be {A_MAPPING}.")
    name = section.get("encoder", QuestionEncoderConfig().encoder)
    schema: type[QuestionEncoderConfig] = schema_of("question_encoder", name, f"{where}.encoder")
    return typed(schema, section, where)


def build_streams(
    configs: Mapping[str, EncoderConfig],
    names: Iterable[str],
    where: str,
    *,
    load_weights: bool = True,
) -> dict[str, Encoder]:
    """Build the encoders of these streams, with random weights unless ``load_weights``."""
    built = {}
    for name in names:
        config: Any = configs[name] if load_weights else configs[name].unloaded()
        built[name] = registry.get_encoder_class(config.encoder)(config, f"{where}.{name}")
    return built


def streams_of(configs: Mapping[str, EncoderConfig], schema: type[EncoderConfig]) -> list[str]:
    """Names of the streams whose encoder is configured by ``schema``."""
    return [name for name, config in configs.items() if isinstance(config, schema)]
