"""Convert a merged section to its dataclass, with errors that name the key."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_ext.common.errors import UserError, nearest
from lavis_ext.config.scalars import read_as
from lavis_ext.config.schema import check
from lavis_ext.config.search import did_you_mean
from lavis_ext.registry import registry

Schema = TypeVar("Schema")

A_MAPPING = "a mapping of keys to values"
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
# OmegaConf raises its own errors for most invalid values, and these for some containers.
MISFITS = (OmegaConfBaseException, TypeError, ValueError)


def typed(schema: type[Schema], section: Mapping[Any, Any] | Any, where: str) -> Schema:
    """``section`` as an instance of the dataclass ``schema``, its values checked.

    ``where`` is the section's key, such as ``run``. Interpolations are resolved. Raises UserError
    for an unknown key (naming the nearest known one), a value of another type or outside its
    limits, and an unresolvable interpolation.
    """
    if not isinstance(section, Mapping) and not OmegaConf.is_dict(section):
        raise UserError(f"{where} is {shown(section)}; it must be {A_MAPPING}.")
    plain = _resolved(section, where)
    try:
        config = _instance(schema, plain)
    except MISFITS:
        _raise_misfit(schema, plain, where)
        raise
    check(config, where)
    return config


def look_up(kind: str, name: Any, key: str) -> Any:
    """The class registered as ``name`` of ``kind`` (as in ``get_<kind>_class``).

    Raises UserError naming the config's ``key`` and the registered names.
    """
    try:
        return getattr(registry, f"get_{kind}_class")(str(name))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def default_config(types: Mapping[str, Path | str], name: str, key: str) -> str:
    """Path of the default YAML of a model's or data set's type.

    Raises UserError naming the config's ``key`` and the ``types`` that exist.
    """
    if name not in types:
        listed = ", ".join(types) or "none"
        raise UserError(f"{key} is '{name}'; there are: {listed}.{nearest(name, types)}")
    return str(types[name])


def schema_of(kind: str, name: Any, key: str) -> Any:
    """The dataclass ``Config`` of a registered class.

    Raises UserError for classes without one, such as LAVIS's own.
    """
    schema = getattr(look_up(kind, name, key), "Config", None)
    if schema is None:
        raise UserError(
            f"{key} is '{name}', which has no typed config and can't be used here. Add a "
            "dataclass `Config` to the class, or use another class."
        )
    return schema


def shown(value: Any) -> str:
    """A value in YAML's notation, for a message."""
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
        raise UserError(f"{where}: an interpolation (${{...}}) in it refers to itself.") from None
    return cast(dict[Any, Any], plain)


def _instance(schema: type[Schema], plain: dict[Any, Any]) -> Schema:
    read = read_as(schema, plain)
    instance = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), read))
    OmegaConf.structured(instance)  # merging accepts lists in lists of strings
    return cast(Schema, instance)


def _raise_misfit(schema: Any, section: Mapping[Any, Any], where: str) -> None:
    """Raise UserError for the first key or value of ``section`` outside of ``schema``."""
    hints = typing.get_type_hints(schema)
    for name, value in section.items():
        key = f"{where}.{name}"
        if name not in hints:
            helps = {
                each.name: each.metadata.get("help", "") for each in dataclasses.fields(schema)
            }
            hint = did_you_mean(str(name), helps) or (
                f" There are: {', '.join(hints)}. Other sections' keys: python -m lavis_ext keys."
            )
            raise UserError(f"{key}: there is no such key.{hint}")
        kinds = _kinds(hints[name])
        wanted, optional = kinds[0], type(None) in kinds
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            _raise_misfit(wanted, value, key)
            continue
        entry = typing.get_args(wanted)[0] if typing.get_origin(wanted) is list else None
        if dataclasses.is_dataclass(entry) and isinstance(value, list):
            for place, each in enumerate(value):
                if isinstance(each, Mapping):
                    _raise_misfit(entry, each, f"{key}[{place}]")
        try:
            _instance(schema, {name: value})
        except MISFITS:
            expected = ", or ".join(_all_expected(kinds) + ["null"] * optional)
            raise UserError(f"{key} is {shown(value)}; it must be {expected}.") from None


def _kinds(hint: Any) -> list[Any]:
    """Members of a union, None last; for another type, the type itself."""
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is not typing.Union:
        return [hint]
    return sorted(typing.get_args(hint), key=lambda each: each is type(None))


def _all_expected(kinds: list[Any]) -> list[str]:
    others = [each for each in kinds if each is not type(None)]
    if float in others and int in others:
        others.remove(int)
    return [_expected(each) for each in others]


def _expected(hint: Any) -> str:
    if typing.get_origin(hint) in (list, tuple):
        return f"a list, each entry {_expected(typing.get_args(hint)[0])}"
    return EXPECTED.get(hint, A_MAPPING)
