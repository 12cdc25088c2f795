"""Building blocks of typed configs: dataclass fields with help and limits.

Every component owns one dataclass. ``check`` walks an instance and reports the first value
outside its limits by full key, so components' constructors don't repeat the checks.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lavis_ext.common.errors import UserError, nearest, shortened

Schema = TypeVar("Schema")


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | None = None,
    may_change: bool = False,
    files: Sequence[str] = (),
) -> Any:
    """A config field: its default, one line of help, and its allowed values.

    ``at_least``, ``at_most`` (inclusive) and ``above`` (exclusive) bound numbers; ``choices`` lists
    the allowed values. None is never checked against them. A callable default is a factory.
    ``may_change`` lets a resumed run change the value. ``files`` marks a source of weights or of a
    tokenizer (see ``checkpoints.sources.resolve``) and lists the file names to look for in a folder
    or on the hub.
    """
    metadata = {
        "help": help,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "choices": choices,
        "may_change": may_change,
        "files": tuple(files),
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any, where: str) -> None:
    """Raise UserError for the first field of ``config`` (a dataclass instance) outside its limits.

    ``where`` is the config's key, such as ``run``. Nested dataclasses are walked, also in lists.
    A dataclass's method ``check_together(where)``, for cross-field rules, is called after its
    fields are checked.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, key)
        elif value is not None:
            _check_value(value, key, field.metadata)
            if isinstance(value, list):
                for place, each in enumerate(value):
                    if dataclasses.is_dataclass(each):
                        check(each, f"{key}[{place}]")
    if hasattr(config, "check_together"):
        config.check_together(where)


def section(schema: Any, *, may_change: bool = False, optional: bool = False) -> Any:
    """A config field that holds another dataclass; ``optional`` ones are absent by default.

    ``may_change`` applies to all keys of the section.
    """
    metadata = {"may_change": may_change}
    if optional:
        return dataclasses.field(default=None, metadata=metadata)
    return dataclasses.field(default_factory=schema, metadata=metadata)


def changeable_keys(config: Any, where: str) -> set[str]:
    """Full keys of ``config``, an instance or a dataclass, that a resumed run may change.

    A field that may change as a whole also adds its key with ``.*``.
    """
    found: set[str] = set()
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    for field in dataclasses.fields(config):
        key = f"{where}.{field.name}"
        value = None if isinstance(config, type) else getattr(config, field.name)
        if field.metadata.get("may_change"):
            found |= {key, f"{key}.*"}
        elif dataclasses.is_dataclass(value):
            found |= changeable_keys(value, key)
        elif isinstance(value, Mapping):
            for name, each in value.items():
                if dataclasses.is_dataclass(each):
                    found |= changeable_keys(each, f"{key}.{name}")
        else:
            for schema in (hints[field.name], *typing.get_args(hints[field.name])):
                if dataclasses.is_dataclass(schema):
                    found |= changeable_keys(schema, key)
    return found


def _entries(key: str, value: Any) -> list[tuple[str, Any]]:
    """Values to check, with their keys: the entries of a mapping or list, or the value itself."""
    if isinstance(value, Mapping):
        return [(f"{key}.{name}", each) for name, each in value.items()]
    return [(key, each) for each in (value if isinstance(value, list | tuple) else [value])]


def _check_value(value: Any, key: str, limits: Any) -> None:
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        hint = nearest(str(value), map(str, choices))
        raise UserError(f"{key} is '{shortened(str(value))}'; it must be one of: {listed}.{hint}")
    at_least, at_most, above = (limits.get(name) for name in ("at_least", "at_most", "above"))
    for entry, number in _entries(key, value):
        if not isinstance(number, int | float):
            continue
        if not math.isfinite(number):
            raise UserError(f"{entry} is {number}; it must be a finite number.")
        if at_least is not None and not number >= at_least:
            raise UserError(f"{entry} is {number}; it must be at least {at_least}.")
        if above is not None and not number > above:
            raise UserError(f"{entry} is {number}; it must be above {above}.")
        if at_most is not None and not number <= at_most:
            raise UserError(f"{entry} is {number}; it must be at most {at_most}.")
