"""Accept old names in configs: rename them, and log that in one line.

A class lists its renamed keys in ``OLD_KEYS``, so that configs and weights of earlier versions keep
working. The core has no list of other classes' names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lavis_ext.common.errors import UserError


@dataclass(frozen=True)
class OldKey:
    """A key with a new name, or with renamed values.

    Attributes:
        old: the full key, such as ``run.log_freq``; ``*`` matches any single part.
        new: the new full key; each ``*`` is replaced by the part that ``old``'s matched, in order.
            None drops the key.
        values: renamed values, old to new.
        adding: values of other full keys, set if they are absent.
    """

    old: str
    new: str | None = None
    values: Mapping[Any, Any] = field(default_factory=dict)
    adding: Mapping[str, Any] = field(default_factory=dict)


MISSING = object()


def rename_old_keys(tree: dict[str, Any], old_keys: Iterable[OldKey]) -> dict[str, str]:
    """Rename keys in place; returns the renamed keys, old to new, for the log.

    Raises UserError for a key given under both names.
    """
    found: dict[str, str] = {}
    for each in old_keys:
        for key in _matching(tree, each.old.split(".")):
            value = _get(tree, key)
            text = ".".join(key)
            if each.values:
                if isinstance(value, str | int | float | bool) and value in each.values:
                    _set(tree, key, each.values[value])
                    found[f"{text}={value}"] = str(each.values[value])
            else:
                new = _filled(each, key)
                _move(tree, key, new)
                found[text] = ".".join(new) if new else "nothing"
            for name, added in each.adding.items():
                holder = _get(tree, name.split(".")[:-1])
                if isinstance(holder, dict) and _get(tree, name.split(".")) is MISSING:
                    _set(tree, name.split("."), added)
    references = {f"${{{old}.": f"${{{new}." for old, new in found.items() if "=" not in old} | {
        f"${{{old}}}": f"${{{new}}}" for old, new in found.items() if "=" not in old
    }
    if references:
        _replace(tree, references)
    return found


def renamed_line(found: Mapping[str, str]) -> str:
    """A log line about renamed keys."""
    listed = ", ".join(f"{old} is now {new}" for old, new in found.items())
    return f"old names in the config: {listed}"


def _matching(tree: Any, parts: list[str]) -> list[list[str]]:
    if not parts:
        return [[]]
    if not isinstance(tree, dict):
        return []
    names = list(tree) if parts[0] == "*" else [parts[0]] if parts[0] in tree else []
    return [[name, *rest] for name in names for rest in _matching(tree[name], parts[1:])]


def _filled(each: OldKey, key: list[str]) -> list[str]:
    if each.new is None:
        return []
    left = iter(name for name, part in zip(key, each.old.split("."), strict=True) if part == "*")
    return [next(left) if part == "*" else part for part in each.new.split(".")]


def _get(tree: Any, key: list[str]) -> Any:
    for part in key:
        if not isinstance(tree, dict) or part not in tree:
            return MISSING
        tree = tree[part]
    return tree


def _set(tree: dict[str, Any], key: list[str], value: Any) -> None:
    for part in key[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[key[-1]] = value


def _move(tree: dict[str, Any], old: list[str], new: list[str]) -> None:
    value = _get(tree, old)
    del _get(tree, old[:-1])[old[-1]]
    if not new:
        return
    there = _get(tree, new)
    if isinstance(there, dict) and isinstance(value, dict) and not there.keys() & value.keys():
        there.update(value)
    elif there is not MISSING and there is not None:
        raise UserError(
            f"{'.'.join(old)} is now {'.'.join(new)}, and the config has both; remove the old one."
        )
    else:
        _set(tree, new, value)


def _replace(tree: Any, references: Mapping[str, str]) -> None:
    pattern = re.compile("|".join(re.escape(old) for old in references))
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            _replace(value, references)
        elif isinstance(value, str):
            tree[key] = pattern.sub(lambda match: references[match[0]], value)
