"""From a merged section to the dataclass that owns it, with errors that name the key."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.schema import check
from lavis_ext.registry import registry

Schema = TypeVar("Schema")

A_MAPPING = "a mapping of keys to values"
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
# OmegaConf raises its own errors for most values that don't fit, and these for some containers.
MISFITS = (OmegaConfBaseException, TypeError, ValueError)


def typed(schema: type[Schema], section: Mapping[Any, Any] | Any, where: str) -> Schema:
    """``section`` as an instance of the dataclass ``schema``, its values checked.

    ``where`` is the section's key, such as ``run``. Interpolations are resolved. Raises UserError
    for a key that the schema doesn't have (naming the nearest one it has), a value of another type,
    a value outside its limits, and an interpolation that leads nowhere.
    """
    if not isinstance(section, Mapping) and not OmegaConf.is_dict(section):
        raise UserError(f"{where} is {shown(section)}; it must be {A_MAPPING}.")
    plain = _resolved(section, where)
    try:
        config = _instance(schema, plain)
    except MISFITS:
        _refuse_misfit(schema, plain, where)
        raise
    check(config, where)
    return config


def look_up(kind: str, name: Any, key: str) -> Any:
    """The class that the registry has of ``kind`` (as in ``get_<kind>_class``) under ``name``.

    Raises UserError naming the config's ``key`` and the names there are.
    """
    try:
        return getattr(registry, f"get_{kind}_class")(str(name))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def schema_of(kind: str, name: Any, key: str) -> Any:
    """The dataclass ``Config`` of the class that ``look_up`` finds.

    LAVIS's own classes have none: a config can't name them.
    """
    schema = getattr(look_up(kind, name, key), "Config", None)
    if schema is None:
        raise UserError(
            f"{key} is '{name}', which has no typed config and can't be used here. Give the class "
            "a dataclass `Config`, or name another."
        )
    return schema


def shown(value: Any) -> str:
    """A value as YAML writes it, for a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _resolved(section: Any, where: str) -> dict[Any, Any]:
    if not OmegaConf.is_config(section):
        return dict(section)
    try:
        plain = OmegaConf.to_container(section, resolve=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key)
        key = key if key.startswith(where) else f"{where}.{key}"
        # OmegaConf puts "KeyError raised while resolving interpolation:" before the reason.
        reason = str(error).splitlines()[0].rpartition("raised while resolving interpolation: ")[2]
        if scalar := re.search(r"node `(.+?)` is not a container", reason):
            value = OmegaConf.select(section._get_root(), scalar[1])
            raise UserError(f"{scalar[1]} is {shown(value)}; it must be {A_MAPPING}.") from None
        raise UserError(f"{key}: {reason.strip(chr(34))}.") from None
    except RecursionError:
        raise UserError(
            f"{where}: an interpolation (${{...}}) in it leads back to itself."
        ) from None
    return cast(dict[Any, Any], plain)


def _instance(schema: type[Schema], plain: dict[Any, Any]) -> Schema:
    instance = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    OmegaConf.structured(instance)  # merging lets lists into lists of texts
    return cast(Schema, instance)


def _refuse_misfit(schema: Any, section: Mapping[Any, Any], where: str) -> None:
    """Raise UserError for the first key or value of ``section`` that doesn't fit ``schema``."""
    hints = typing.get_type_hints(schema)
    for name, value in section.items():
        key = f"{where}.{name}"
        if name not in hints:
            hint = nearest(str(name), hints) or f" There are: {', '.join(hints)}."
            raise UserError(f"{key}: there is no such key.{hint}")
        wanted, optional = _without_none(hints[name])
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            _refuse_misfit(wanted, value, key)
            continue
        try:
            _instance(schema, {name: value})
        except MISFITS:
            expected = f"{_expected(wanted)}{', or null' if optional else ''}"
            raise UserError(f"{key} is {shown(value)}; it must be {expected}.") from None


def _without_none(hint: Any) -> tuple[Any, bool]:
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is not typing.Union:
        return hint, False
    others = [each for each in typing.get_args(hint) if each is not type(None)]
    return others[0], True


def _expected(hint: Any) -> str:
    if typing.get_origin(hint) in (list, tuple):
        return f"a list, each entry {_expected(typing.get_args(hint)[0])}"
    return EXPECTED.get(hint, A_MAPPING)
