"""Values of records as texts: one rule for every file of questions, answers or predictions.

Ids and answers are texts. Programs also write them as numbers: pandas makes floats of whole numbers
in a column with gaps, 3.0 for 3 and NaN for a gap.
"""

import math
from decimal import Decimal
from typing import Any

from lavis_ext.common.errors import listed

EXACT = 2**53
"""Whole floats of this size or more may be rounded, so they can't be ids."""


def as_text(value: Any) -> str | None:
    """A text or number as text; None for null, NaN and blank texts.

    Whole numbers are written without a fraction. Raises TypeError with the value's :func:`kind`
    for anything else, infinite numbers, and floats that may be rounded.
    """
    if type(value) is str:  # nearly always
        return value if value and not value.isspace() else None
    if is_gap(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(kind(value))
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value) or (isinstance(value, float) and abs(value) >= EXACT):
        raise TypeError(kind(value))
    return str(int(value)) if value == int(value) else str(value)


def is_gap(value: Any) -> bool:
    """Whether ``value`` is null or NaN, which pandas writes for a missing one."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def kind(value: Any) -> str:
    """Kind of a value, for messages: "an object", "a list", ..."""
    if value is None:
        return "null"
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    if isinstance(value, float) and abs(value) >= EXACT:
        return "a float too large to be exact"
    names = {bool: "a boolean", int: "a number", float: "a number", Decimal: "a number"}
    names |= {dict: "an object", list: "a list", str: "a string", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def contents(record: Any) -> str:
    """Description of a record's keys or kind, for messages."""
    return f"has {listed(list(record))}" if isinstance(record, dict) else f"is {kind(record)}"
