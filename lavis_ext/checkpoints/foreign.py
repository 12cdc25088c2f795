"""Translate checkpoints from other programs' parameter names to a module's own.

Training programs wrap a network (``module.``, ``_orig_mod.``), make it part of a larger one, or use
other parameter names. A model family declares these names in a :class:`NameTable`; prefixes and
wrappers are detected by comparing names. Only entries that a table declares unused and copies that
are a moving average are dropped.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError, listed, shortened, shortened_name

WRAPPING_PARTS = (
    "module",  # DataParallel, DistributedDataParallel and activation checkpointing
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning
)
"""Name parts that module wrappers add, at any position."""
AVERAGED = re.compile(r"(^|[._])(ema|averaged?|momentum)([._]|$)")
"""Markers in the prefix of a moving average of a model's weights."""
MOST_PREFIXES = 3
MOST_LEVELS = 12
"""Maximum number of parts in a prefix; usual ones have two or three."""


@dataclass(frozen=True)
class NameTable:
    """Another program's names of a module's parameters.

    In a pattern ``#`` matches a number and ``*`` any text; both are carried over in order.

    Attributes:
        program: name of the program, for the load report.
        rules: pairs of their pattern and ours. The first match applies; a name without a match is
            the same in both.
        unused: patterns of their entries that the module doesn't use.
        needs: patterns that must each match an entry for the table to be considered.
    """

    program: str
    rules: Sequence[tuple[str, str]] = ()
    unused: Sequence[str] = ()
    needs: Sequence[str] = ()

    def to_ours(self, name: str) -> str:
        """Our name of their parameter ``name``."""
        return _renamed(name, self._to_ours)

    def to_theirs(self, name: str) -> str:
        """Their name of our parameter ``name``."""
        return _renamed(name, self._to_theirs)

    def unused_by(self, *names: str) -> str | None:
        """The pattern of ``unused`` that matches one of ``names``, if any."""
        for text, pattern in self._unused.items():
            if any(pattern.fullmatch(name) for name in names):
                return text
        return None

    def fits(self, names: Iterable[str]) -> bool:
        """Whether ``names`` match all of ``needs``."""
        known = list(names)
        return all(any(_pattern(each).fullmatch(name) for name in known) for each in self.needs)

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), _template(ours)) for theirs, ours in self.rules]

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours), _template(theirs)) for theirs, ours in self.rules]

    @cached_property
    def _unused(self) -> dict[str, re.Pattern[str]]:
        return {each: _pattern(each) for each in self.unused}


@dataclass(frozen=True)
class ForeignNames:
    """Foreign checkpoint formats that a module accepts.

    Attributes:
        tables: names used by programs that store such a network.
        positions: our names of learned positions [1, P + n * n, D] of a square grid, each with P,
            the number of tokens before the patches. They are interpolated if the grid differs.
    """

    tables: Sequence[NameTable] = ()
    positions: Mapping[str, int] = field(default_factory=dict)


class Translation(NamedTuple):
    """A checkpoint under a module's own names."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    """One phrase per change, for the load report."""


@dataclass(frozen=True)
class _Reading:
    """One way to read a checkpoint's names."""

    table: NameTable | None
    prefix: str
    ours: Mapping[str, str]
    """Our names by theirs, without dropped entries."""
    unused: Mapping[str, str]
    """Unused entries, each with the table's pattern that matched."""
    found: int

    @property
    def rank(self) -> tuple[int, int, bool, bool, int]:
        """Sort key: better fit first, then fewer assumptions."""
        left_over = len(self.ours) - self.found
        averaged = bool(AVERAGED.search(self.prefix))
        return self.found, -left_over, not averaged, self.table is None, -len(self.prefix)


def translate(
    state: Mapping[str, Tensor], module: nn.Module, names: ForeignNames, *, source: str
) -> Translation:
    """Translate a checkpoint's names by the reading that fits ``module`` best.

    Readings combine one table or none with each prefix found in front of most of the module's
    names. A checkpoint that no reading fits well is returned in the best one; ``load_into`` then
    rejects it.

    Raises UserError, naming ``source``, if two different tensors get the same name.
    """
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if all(name in state and state[name].shape == shape for name, shape in own.items()):
        return Translation(dict(state))
    plain, wrappers = _unwrapped(state, own, source)
    tables = [None, *(table for table in names.tables if table.fits(plain))]
    readings = [
        _read(plain, own, names, table, prefix)
        for table in tables
        for prefix in _prefixes(plain, own, table)
    ]
    best = max(readings, key=lambda reading: reading.rank)
    copies = _averages(best, readings, len(own))
    kept = {theirs: ours for theirs, ours in best.ours.items() if theirs not in copies}
    translated = _put_under(((ours, plain[theirs]) for theirs, ours in kept.items()), source)
    notes = _notes(best, wrappers, copies)
    for name, prefix in names.positions.items():
        if name in translated and name in own and translated[name].shape != own[name]:
            resized = resize_positions(translated[name], own[name], prefix)
            if resized is not None:
                sides = [isqrt(shape[1] - prefix) for shape in (translated[name].shape, own[name])]
                before, now = (f"{side}x{side}" for side in sides)
                notes.append(f"positions interpolated from a grid of {before} to {now}")
                translated[name] = resized
    return Translation(translated, tuple(notes))


def resize_positions(positions: Tensor, shape: Sequence[int], prefix: int) -> Tensor | None:
    """Learned positions [1, P + n * n, D] for the grid of another image size, bicubic.

    Those of the ``prefix`` P tokens before the patches are kept (LAVIS, vit.py:
    interpolate_pos_embed). None unless ``positions`` and ``shape`` are of square grids.
    """
    if positions.dim() != 3 or len(shape) != 3:
        return None
    sides = [isqrt(max(length - prefix, 0)) for length in (positions.shape[1], shape[1])]
    lengths = [prefix + side * side for side in sides]
    if (
        lengths != [positions.shape[1], shape[1]]
        or 0 in sides
        or (positions.shape[0], positions.shape[2]) != (shape[0], shape[2])
        or not positions.is_floating_point()
    ):
        return None
    grid = positions[:, prefix:].float().transpose(1, 2).unflatten(2, (sides[0], sides[0]))
    resized = F.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    patches = resized.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat((positions[:, :prefix], patches), dim=1)


def _read(
    state: Mapping[str, Tensor],
    own: Mapping[str, torch.Size],
    names: ForeignNames,
    table: NameTable | None,
    prefix: str,
) -> _Reading:
    ours: dict[str, str] = {}
    unused: dict[str, str] = {}
    for name in state:
        inside = name.startswith(prefix)
        within = name.removeprefix(prefix)
        called = table.to_ours(within) if table and inside else within
        pattern = table.unused_by(within, name) if table else None
        if inside and (called in own or pattern is None):
            ours[name] = called
        elif pattern is not None:
            unused[name] = pattern
        else:  # part of another module, even if this module has the same name
            ours[name] = f"{name} (not in '{prefix}')" if name in own else name
    found = {
        called
        for name, called in ours.items()
        if called in own and (state[name].shape == own[called] or called in names.positions)
    }
    return _Reading(table, prefix, ours, unused, len(found))


def _prefixes(state: Iterable[str], own: Iterable[str], table: NameTable | None) -> list[str]:
    """The empty prefix, and prefixes in front of most of the module's possible names."""
    expected = set(own) if table is None else {table.to_theirs(name) for name in own}
    votes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".", MOST_LEVELS)
        for level in range(1, len(parts)):
            if ".".join(parts[level:]) in expected:
                votes[".".join(parts[:level]) + "."] += 1
    return ["", *(prefix for prefix, _ in votes.most_common(MOST_PREFIXES))]


def _unwrapped(
    state: Mapping[str, Tensor], own: Iterable[str], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors with the wrappers' parts removed from their names, and those parts."""
    known = {part for name in own for part in name.split(".")}
    added = [part for part in WRAPPING_PARTS if part not in known]
    pattern = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(added) or '(?!)'})\.")
    found = {match[0] for name in state for match in pattern.finditer(name)}
    if not found:
        return dict(state), []
    renamed = ((pattern.sub("", name), tensor) for name, tensor in state.items())
    return _put_under(renamed, source), sorted(found)


def _averages(best: _Reading, readings: Iterable[_Reading], total: int) -> set[str]:
    """Entries of a complete second copy of the weights in ``best``: a moving average."""
    copies: set[str] = set()
    for other in readings:
        within = {name for name in other.ours if name.startswith(other.prefix)}
        if (
            other.table is best.table
            and other.prefix != best.prefix
            and AVERAGED.search(other.prefix)
            and other.found == total == len({other.ours[name] for name in within})
        ):
            copies |= within
    return copies


def _put_under(named: Iterable[tuple[str, Tensor]], source: str) -> dict[str, Tensor]:
    """Tensors by name; equal duplicates, as of shared modules, are merged."""
    found: dict[str, Tensor] = {}
    for name, tensor in named:
        if name in found and not _equal(found[name], tensor):
            raise UserError(
                f"{source}: without wrappers and prefixes, two different tensors have the name "
                f"{shortened_name(name, 120)}, so it is ambiguous. Save only one of them."
            )
        found[name] = tensor
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _notes(best: _Reading, wrappers: Sequence[str], copies: Iterable[str]) -> list[str]:
    notes = []
    if best.table is not None and any(_changed(best)):
        notes.append(f"read by the names of {best.table.program}")
    elif best.table is not None and best.unused:
        notes.append(f"read as a file of {best.table.program}")
    left_out = [*wrappers, *([best.prefix] if best.prefix else [])]
    if left_out:
        quoted = ", ".join(f"'{shortened(each)}'" for each in left_out)
        notes.append(f"without {quoted} in its names")
    if best.unused:
        patterns = listed(list(dict.fromkeys(best.unused.values())))
        number = len(best.unused)
        verb = "isn't" if number == 1 else "aren't"
        notes.append(f"left out {_entries(number)} that {verb} used here ({patterns})")
    if number := len(set(copies)):
        notes.append(f"left out {_entries(number)} of a moving average")
    return notes


def _entries(number: int) -> str:
    return f"{number} {'entry' if number == 1 else 'entries'}"


def _changed(reading: _Reading) -> Iterable[bool]:
    return (
        ours != theirs.removeprefix(reading.prefix)
        for theirs, ours in reading.ours.items()
        if theirs.startswith(reading.prefix)
    )


def _renamed(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            return match.expand(template)
    return name


def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\#", "([0-9]+)").replace(r"\*", "(.*)")
    return re.compile(escaped, re.DOTALL)


def _template(text: str) -> str:
    numbers = iter(range(1, 10))
    return re.sub(r"[#*]", lambda _: rf"\{next(numbers)}", text)
