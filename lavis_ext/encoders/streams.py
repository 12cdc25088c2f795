"""A model's ``streams``: names to encoders, typed and built."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import A_MAPPING, schema_of, shown, typed

# Imported to be registered.
from lavis_ext.encoders import timm  # noqa: F401
from lavis_ext.encoders.base import Encoder, EncoderConfig
from lavis_ext.encoders.blip import encoder as blip  # noqa: F401
from lavis_ext.encoders.efficient_sam import encoder as efficient_sam  # noqa: F401
from lavis_ext.registry import registry

RESERVED = frozenset(dir(nn.ModuleDict()))
"""Names that a child of a module can't have."""


def typed_streams(sections: Any, where: str) -> dict[str, EncoderConfig]:
    """The streams' sections as the options of their encoders.

    Raises UserError for names that can't be part of a parameter's name, and for a section without
    an encoder of the registry, or with options that it doesn't have.
    """
    if not isinstance(sections, Mapping) or not sections:
        raise UserError(f"{where} is {shown(sections)}; it must be {A_MAPPING}, an encoder each.")
    found = {}
    for name, section in sections.items():
        key = f"{where}.{name}"
        if not str(name).isidentifier() or name in RESERVED:
            raise UserError(f"{key}: a stream can't have this name; choose a word of letters.")
        if isinstance(section, EncoderConfig):
            found[str(name)] = section
            continue
        if not isinstance(section, Mapping) or not section.get("encoder"):
            raise UserError(
                f"{key}.encoder is missing; it names one of: {', '.join(registry.list_encoders())}."
            )
        schema = schema_of("encoder", section["encoder"], f"{key}.encoder")
        found[str(name)] = typed(schema, section, key)
    return found


def build_streams(
    configs: Mapping[str, EncoderConfig],
    names: Iterable[str],
    where: str,
    *,
    load_weights: bool = True,
) -> dict[str, Encoder]:
    """The encoders of these streams; random without ``load_weights``."""
    built = {}
    for name in names:
        config: Any = configs[name]
        if not load_weights:
            config = replace(config, weights=None)
        built[name] = registry.get_encoder_class(config.encoder)(config, f"{where}.{name}")
    return built


def streams_of(configs: Mapping[str, EncoderConfig], schema: type[EncoderConfig]) -> list[str]:
    """Names of the streams whose encoder takes such options."""
    return [name for name, config in configs.items() if isinstance(config, schema)]
