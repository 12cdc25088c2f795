"""Mutations of valid files: Hypothesis strategies for bytes and for trees of values."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Tree: TypeAlias = Any
"""JSON values, and :class:`Raw`."""


@dataclass(frozen=True)
class Raw:
    """Text to be written verbatim, such as a number without a Python value."""

    text: str


class Pairs(list[tuple[str, Tree]]):
    """An object with possibly repeated names."""


def nested(depth: int) -> Raw:
    """``depth`` nested lists."""
    return Raw("[" * depth + "]" * depth)


ODD_TEXTS = (
    *("", " ", "\x00", "\ud83d", "\U0001f600", "\u202e\u0627", "\x1b[2J", "a\nb", "\ufeff"),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "a/b.jpg",
        "C:\\x",
        "${oc.env:HOME}",
        "%s%n{0}",
        "x" * 999,
    ),
    *("<script>", "__proto__", "True", "null", "1e999", "packaged:../setup.py", "http://[", "???"),
)
ODD_NUMBERS = (
    *("0", "-1", "1.5", "1e999", "-1e-999", "NaN", "Infinity", "-Infinity", "9" * 5000, "1" * 30),
    *(str(2**31), str(2**63), str(2**64), str(-(2**63) - 1), "0.1e1", "-0"),
)
odd_values: SearchStrategy[Tree] = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS).map(Raw),
    st.sampled_from([None, True, False, [], {}, [[]], [None], {"": {}}]),
    st.sampled_from([2, 60, 5000]).map(nested),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)

CHANGES = ("exchange", "remove", "double", "rename", "wrap", "move")
Change: TypeAlias = tuple[str, int, Tree]


def changes(most: int, values: SearchStrategy[Tree] = odd_values) -> SearchStrategy[list[Change]]:
    """A sequence of changes to a tree, possibly empty."""
    place = st.integers(0, 2**16)
    return st.lists(st.tuples(st.sampled_from(CHANGES), place, values), max_size=most)


def changed(tree: Tree, todo: Sequence[Change]) -> Tree:
    """A copy of ``tree`` with these changes."""
    tree = _copy(tree)
    for kind, place, value in todo:
        holders = list(_holders(tree))
        if not holders:
            return value
        holder, key = holders[place % len(holders)]
        # A value may be drawn twice, and would then contain itself.
        _change(holder, key, kind, _copy(value), holders[(place // 7) % len(holders)])
    return tree


def _copy(tree: Tree) -> Tree:
    if isinstance(tree, dict | Pairs):
        pairs = tree.items() if isinstance(tree, dict) else tree
        return Pairs((name, _copy(value)) for name, value in pairs)
    return [_copy(each) for each in tree] if isinstance(tree, list) else tree


def _holders(tree: Tree) -> Any:
    """Locations of values: a list or Pairs, with an index."""
    if isinstance(tree, list):
        for place, each in enumerate(tree):
            yield tree, place
            yield from _holders(each[1] if isinstance(tree, Pairs) else each)


def _change(holder: Any, place: int, kind: str, value: Tree, other: tuple[Any, int]) -> None:
    pairs = isinstance(holder, Pairs)
    name, old = holder[place] if pairs else ("", holder[place])

    def put(new: Tree, under: str = name) -> None:
        holder[place] = (under, new) if pairs else new

    if kind == "exchange":
        put(value)
    elif kind == "remove":
        del holder[place]
    elif kind == "double":
        holder.insert(place, (name, _copy(old)) if pairs else _copy(old))
    elif kind == "rename":
        put(old, value if isinstance(value, str) else "renamed")
    elif kind == "wrap":
        put([old, value])
    elif other[0] is not holder:
        moved = other[0][other[1]]
        put(_plain(moved[1] if isinstance(other[0], Pairs) else moved))


def _plain(tree: Tree) -> Tree:
    """A copy without shared containers, so that it can't contain itself."""
    return Raw(written(tree))


def written(tree: Tree, *, ascii_only: bool = True) -> str:
    """``tree`` as JSON. Lone surrogates are escaped, because UTF-8 has none."""
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, dict):
        tree = Pairs(tree.items())
    if isinstance(tree, Pairs):
        inside = (
            f"{_text(name, ascii_only)}: {written(v, ascii_only=ascii_only)}" for name, v in tree
        )
        return "{" + ", ".join(inside) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(written(each, ascii_only=ascii_only) for each in tree) + "]"
    return _text(tree, ascii_only) if isinstance(tree, str) else json.dumps(tree)


def _text(text: str, ascii_only: bool) -> str:
    if re.search("[\ud800-\udfff]", text):
        ascii_only = True
    return json.dumps(text, ensure_ascii=ascii_only)


DEEDS = ("flip", "cut", "end", "insert", "repeat", "splice", "overwrite", "number")
Deed: TypeAlias = tuple[str, int, int, bytes]


def deeds(words: Sequence[bytes], most: int = 4) -> SearchStrategy[list[Deed]]:
    """A sequence of changes to bytes, possibly empty. ``words`` are tokens of the format."""
    place = st.integers(0, 2**20)
    payload = st.sampled_from(words) | st.binary(max_size=8)
    return st.lists(st.tuples(st.sampled_from(DEEDS), place, place, payload), max_size=most)


def damaged(content: bytes, todo: Sequence[Deed], other: bytes = b"") -> bytes:
    """``content`` after these changes, with pieces of ``other`` spliced in."""
    for kind, a, b, payload in todo:
        size = len(content)
        if not size:
            return payload
        at = a % size
        length = b % min(size - at, 64) + 1 if size > at else 1
        piece = content[at : at + length]
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ (1 << b % 8)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at] + content[at + length :]
        elif kind == "end":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + payload + content[at:]
        elif kind == "repeat":
            content = content[:at] + piece * (b % 9 + 1) + content[at:]
        elif kind == "splice":
            begin = b % max(len(other), 1)
            content = content[:at] + other[begin : begin + 64] + content[at:]
        elif kind == "overwrite":
            content = content[:at] + payload + content[at + len(payload) :]
        elif numbers := list(re.finditer(rb"\d+", content)):
            found = numbers[a % len(numbers)]
            number = ODD_NUMBERS[b % len(ODD_NUMBERS)].encode()
            content = content[: found.start()] + number + content[found.end() :]
    return content
