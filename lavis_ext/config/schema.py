"""What a typed config is made of: dataclasses whose fields carry help and limits.

Every component owns one such dataclass. ``check`` walks an instance and reports the first value
outside its limits by its full key, so a component's constructor need not repeat the checks.
"""

import dataclasses
import math
from collections.abc import Sequence
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
) -> Any:
    """A config field: its default, one line of help, and the values it may take.

    ``at_least``, ``at_most`` (inclusive) and ``above`` (exclusive) bound numbers; ``choices`` lists
    the allowed values. A value of None is never checked against them. A callable default is a
    factory.
    """
    metadata = {
        "help": help,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "choices": choices,
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


def _check_value(value: Any, key: str, limits: Any) -> None:
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        hint = nearest(str(value), map(str, choices))
        raise UserError(f"{key} is '{shortened(str(value))}'; it must be one of: {listed}.{hint}")
    at_least, at_most, above = (limits.get(name) for name in ("at_least", "at_most", "above"))
    for number in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(number, int | float):
            continue
        if not math.isfinite(number):
            raise UserError(f"{key} is {number}; it must be a finite number.")
        if at_least is not None and not number >= at_least:
            raise UserError(f"{key} is {number}; it must be at least {at_least}.")
        if above is not None and not number > above:
            raise UserError(f"{key} is {number}; it must be above {above}.")
        if at_most is not None and not number <= at_most:
            raise UserError(f"{key} is {number}; it must be at most {at_most}.")
