"""What a typed config is made of: dataclasses whose fields carry help and limits.

Every component owns one such dataclass. ``check`` walks an instance and reports the first value
outside its limits by its full key, so a component's constructor need not repeat the checks.
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
) -> Any:
    """A config field: its default, one line of help, and the values it may take.

    ``at_least``, ``at_most`` (inclusive) and ``above`` (exclusive) bound numbers; ``choices`` lists
    the allowed values. A value of None is never checked against them. A callable default is a
    factory. ``may_change`` says that a run can be resumed with another value.
    """
    metadata = {
        "help": help,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "choices": choices,
        "may_change": may_change,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any, where: str) -> None:
    """Raise UserError for the first field of ``config`` (a dataclass instance) outside its limits.

    ``where`` is the key under which the config stands, such as ``run``. Nested dataclasses are
    walked; a dataclass with a method ``check_together(where)`` has its cross-field rules applied
    after its fields.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = f"{where}.{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, key)
        elif value is not None:
            _check_value(value, key, field.metadata)
    if hasattr(config, "check_together"):
        config.check_together(where)


def section(schema: Any, *, may_change: bool = False, optional: bool = False) -> Any:
    """A config field that holds another dataclass; ``optional`` ones are absent by default.

    ``may_change`` holds for all keys of the section.
    """
    metadata = {"may_change": may_change}
    if optional:
        return dataclasses.field(default=None, metadata=metadata)
    return dataclasses.field(default_factory=schema, metadata=metadata)


def changeable_keys(config: Any, where: str) -> set[str]:
    """Full keys of ``config``, an instance or a dataclass, with which a run can be resumed changed.

    Of a field that may change as a whole, the key ends in ``.*`` as well.
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
    """What limits hold for: each value of a mapping or list by its key, or the value itself."""
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
