"""``--grid``: the runs of every combination of the values given for each key."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lavis_ext.common.errors import UserError, shortened

SEED = "run.seed"
"""Runs that differ in this key alone are repetitions of one choice."""
SET_BY_SWEEP = ("run.name", "run.resume", "run.output_dir")
SECTIONS = ("run.", "model.", "datasets.", "task.")
"""Left out of keys where they are clear without it."""
LONGEST_VALUE = 40
_OPENING, _CLOSING, _QUOTES = "[{", "]}", "'\""
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class Axis:
    """Keys and the values that they take together.

    Attributes:
        keys: config keys; several if they were joined by ``+``.
        values: texts of the keys' values, a tuple per choice.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
        name: name of its folder.
        values: text of each key's value.
    """

    name: str
    values: Mapping[str, str]

    @property
    def options(self) -> list[str]:
        """The values as ``KEY=VALUE``."""
        return [f"{key}={value}" for key, value in self.values.items()]

    @property
    def choice(self) -> dict[str, str]:
        """The values without the seed."""
        return {key: value for key, value in self.values.items() if key != SEED}


def parse_grid(entries: Sequence[str], option: str = "--grid") -> list[Axis]:
    """Parse ``KEY=V1,V2`` and ``KEY+KEY=V1:V1,V2:V2`` entries.

    Commas and colons in brackets or quotes belong to the value. Raises UserError for entries of
    another form, keys that are given twice or set by the sweep, and missing or repeated values.
    """
    axes = [_parse_axis(entry, option) for entry in entries]
    check_keys([key for axis in axes for key in axis.keys], option)
    for axis in axes:
        if SEED in axis.keys and len(axis.keys) > 1:
            raise UserError(
                f"{option}: {SEED} can't be joined with other keys, because the runs of all seeds "
                f"are averaged. Give it as an entry of its own, such as {SEED}=1,2,3."
            )
    return axes


def check_keys(keys: Sequence[str], option: str) -> None:
    """Raise UserError for a key that is given twice, or set by the sweep itself."""
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise UserError(f"{option}: {key} is given twice; put all of its values in one entry.")
        if key in SET_BY_SWEEP:
            raise UserError(
                f"{option}: {key} is set by the sweep, which gives each run its own folder. "
                "The sweep's folder is named by --name."
            )


def planned_runs(axes: Sequence[Axis]) -> list[PlannedRun]:
    """Every combination of the axes' values; the last axis varies fastest."""
    keys = [key for axis in axes for key in axis.keys]
    short = short_keys(keys)
    runs = []
    for combination in product(*(axis.values for axis in axes)):
        values = dict(zip(keys, (text for texts in combination for text in texts), strict=True))
        runs.append(PlannedRun(_folder_name(values, short), values))
    return runs


def choices_of(runs: Iterable[PlannedRun]) -> list[tuple[dict[str, str], list[PlannedRun]]]:
    """Runs by their values without the seed, in order."""
    grouped: dict[tuple[tuple[str, str], ...], list[PlannedRun]] = {}
    for run in runs:
        grouped.setdefault(tuple(run.choice.items()), []).append(run)
    return [(dict(choice), of) for choice, of in grouped.items()]


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Keys without their section, unless two would be the same."""
    short = {}
    for key in keys:
        section = next((each for each in SECTIONS if key.startswith(each)), "")
        short[key] = key.removeprefix(section)
    if len(set(short.values())) < len(short):
        return {key: key for key in short}
    return short


def split_outside(text: str, separator: str) -> list[str]:
    """Split at separators that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES and not parts[-1].strip():  # an apostrophe within a word is none
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == separator and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]


def split_entry(entry: str, option: str, example: str) -> tuple[str, str]:
    """Key and text of ``KEY=TEXT``. Raises UserError for another form or no text."""
    key, equals, text = entry.partition("=")
    key = key.strip()
    if not equals or not all(part.strip() for part in re.split(r"[.+]", key)):
        raise UserError(
            f"{option}: '{shortened(entry)}' isn't of the form KEY=VALUES, such as {example}."
        )
    if not text.strip():
        raise UserError(f"{option}: {shortened(key)} has no values; write them as in {example}.")
    return key, text


def _parse_axis(entry: str, option: str) -> Axis:
    joined, text = split_entry(entry, option, "run.seed=1,2,3")
    keys = tuple(key.strip() for key in joined.split("+"))
    values = []
    for part in split_outside(text, ","):
        texts = tuple(split_outside(part, ":")) if len(keys) > 1 else (part,)
        if not all(texts):
            raise UserError(
                f"{option}: {joined} has an empty value in '{shortened(text)}'; leave the comma "
                "out, or write null."
            )
        if len(texts) != len(keys):
            raise UserError(
                f"{option}: '{shortened(part)}' has {len(texts)} value(s) for the {len(keys)} keys "
                f"{', '.join(keys)}; separate one value a key by colons."
            )
        if texts in values:
            raise UserError(f"{option}: {joined} has the value '{shortened(part)}' twice.")
        values.append(texts)
    return Axis(keys, tuple(values))


def _folder_name(values: Mapping[str, str], short: Mapping[str, str]) -> str:
    """A readable name; values that had to be changed for it are told apart by a digest."""
    safe = {key: _UNSAFE.sub("_", value)[:LONGEST_VALUE] for key, value in values.items()}
    name = ",".join(f"{short[key]}={value}" for key, value in safe.items())
    if safe == dict(values):
        return name
    return f"{name}-{hashlib.sha1(repr(values).encode()).hexdigest()[:6]}"
