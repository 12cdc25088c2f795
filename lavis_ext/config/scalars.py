"""Interpretation of scalar values: by the declared type of the key, not by the text's look.

YAML 1.1 reads 007 as 7, 0042 as 34, 1:30 as 90 and yes as true for any key. Here a value stays text
unless it is in canonical form (``7``, ``0.5``, ``true``), and :func:`read_as` parses the text once
the key's type is known. So a key of type str has the text as it was typed; YAML's comments, quotes
and ``null`` keep their meaning.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

NULLS = frozenset({"~", "null", "Null", "NULL"})
"""Texts read as null for a nullable key that isn't of type str."""
TRUE_WORDS = ("true", "yes", "y", "on", "1", 1)
FALSE_WORDS = ("false", "no", "n", "off", "0", 0)
_CANONICAL_INT = re.compile(r"0|-?[1-9][0-9]{0,18}")
_PREFIXED_INT = re.compile(r"[+-]?0[xob][0-9a-f_]+", re.IGNORECASE)
_YAML_FLOAT = re.compile(r"([+-]?)\.(inf|nan)", re.IGNORECASE)
_TAG = "tag:yaml.org,2002:"


class TextLoader(yaml.SafeLoader):
    """PyYAML's safe loader without YAML 1.1's guesses, and with an error for duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Keep every key as text."""
        seen = set()
        for key, _ in node.value:
            if key.tag in _GUESSED:
                key.tag = f"{_TAG}str"
            if key.tag == f"{_TAG}str" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping",
                    node.start_mark,
                    f"found duplicate key {key.value}",
                    key.start_mark,
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)

    def construct_guessed(self, node: yaml.ScalarNode) -> Any:
        """A number or boolean in canonical form, else the text."""
        known = yaml.SafeLoader.yaml_constructors
        value = known[node.tag](self, node)  # raises if the tag doesn't fit
        return value if node.style is not None else plain_value(node.value)


_GUESSED = frozenset(f"{_TAG}{kind}" for kind in ("int", "float", "bool"))
for _tag in _GUESSED:
    TextLoader.add_constructor(_tag, TextLoader.construct_guessed)
for _tag in (f"{_TAG}value", f"{_TAG}merge"):  # the texts = and <<
    TextLoader.add_constructor(_tag, yaml.SafeLoader.yaml_constructors[f"{_TAG}str"])
# Dates stay text unless tagged.
TextLoader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(text: str) -> Any:
    """Parse YAML with :class:`TextLoader`. Raises YAMLError."""
    loader = TextLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def plain_value(text: str) -> Any:
    """The number or boolean whose canonical form is ``text``, else the text."""
    if text in ("true", "false"):
        return text == "true"
    if _CANONICAL_INT.fullmatch(text):
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return text
    return value if repr(value) == text and text[-1].isdigit() else text


def option_value(text: str) -> Any:
    """Parse the value of a ``--options`` entry.

    Lists and mappings are YAML in brackets. ``null`` or nothing is None. Quotes are removed; other
    text is kept as it is, unless it is a :func:`plain_value`. Raises YAMLError.
    """
    bare = text.strip()
    if bare in ("", "null", "Null", "NULL"):
        return None
    if bare.startswith(("[", "{", "!!")):
        return load(bare)
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\"":
        try:
            quoted = load(bare)
        except yaml.YAMLError:
            return text
        return quoted if isinstance(quoted, str) else text
    return plain_value(text)


def read_as(hint: Any, value: Any) -> Any:
    """Parse ``value`` for a key of type ``hint``; a value that doesn't parse is returned as it is.

    Raises ValueError for booleans other than ``TRUE_WORDS`` and ``FALSE_WORDS``.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (types.UnionType, typing.Union):
        return _read_as_one_of([each for each in arguments if each is not type(None)], value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return {
            name: read_as(hints[name], each) if name in hints else each
            for name, each in value.items()
        }
    if origin is dict and isinstance(value, Mapping):
        return {name: read_as(arguments[1], each) for name, each in value.items()}
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [read_as(arguments[0], each) for each in value]
    reader = _READERS.get(hint)
    return value if reader is None else reader(value)


def _read_as_one_of(hints: list[Any], value: Any) -> Any:
    """Parse a value for a union: numbers take precedence over booleans, and these over text."""
    if str not in hints and isinstance(value, str) and value in NULLS:
        return None
    if len(hints) == 1:
        return read_as(hints[0], value)
    # 1.0 may mean another thing than 1, as for a share or a number of examples.
    has_point = isinstance(value, float) or (isinstance(value, str) and "." in value)
    order = (float, int, bool, str) if has_point else (int, float, bool, str)
    for hint in (each for each in order if each in hints):
        if type(found := read_as(hint, value)) is hint:
            return found
    return value


def _whole_number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            if _PREFIXED_INT.fullmatch(value.strip()):
                return int(value, 0)
            return int(value)
        except ValueError:
            found = _number(value)
            return _whole_number(found) if isinstance(found, float) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(_YAML_FLOAT.sub(r"\1\2", value.strip()))
        except ValueError:
            return value
    return float(value) if type(value) is int and abs(value) < 2**1000 else value


def _truth_value(value: Any) -> Any:
    word = value.strip().lower() if isinstance(value, str) else value
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    if isinstance(value, str | int | float):
        raise ValueError(f"{value} is not a boolean")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


_READERS = {int: _whole_number, float: _number, bool: _truth_value, str: _text}
