"""From a merged section to the dataclass that owns it, with errors that name the key."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from lavis_ext.config.schema import check
from lavis_ext.errors import UserError, nearest

Schema = TypeVar("Schema")


def typed(schema: type[Schema], section: Mapping[Any, Any] | Any, where: str) -> Schema:
    """``section`` as an instance of the dataclass ``schema``, its values checked.

    ``where`` is the section's key, such as ``run``. Raises UserError for a key that the schema
    doesn't have (naming the nearest one it has), a value of another type, and a value outside its
    limits.
    """
    if not isinstance(section, Mapping) and not OmegaConf.is_dict(section):
        raise UserError(f"{where} is '{section}'; it must be a mapping of keys to values.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), section)
        config = cast(Schema, OmegaConf.to_object(merged))
    except ConfigKeyError as error:
        raise UserError(_unknown_key(schema, error, where)) from None
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0].rstrip(".")
        raise UserError(f"{where}.{error.full_key}: {reason}.") from None
    check(config, where)
    return config


def _unknown_key(schema: type, error: ConfigKeyError, where: str) -> str:
    owner = error.object_type if dataclasses.is_dataclass(error.object_type) else schema
    known = [entry.name for entry in dataclasses.fields(owner)]
    hint = nearest(str(error.key), known) or f" It has: {', '.join(known)}."
    return f"{where}.{error.full_key}: there is no such key.{hint}"
