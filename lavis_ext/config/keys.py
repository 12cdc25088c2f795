"""Every config key, from the options of the registered classes.

``python -m lavis_ext keys [WORD ...]`` lists them; the documentation has them as a page.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lavis_ext.common.errors import UserError, command
from lavis_ext.common.tables import Table, show
from lavis_ext.config.command_line import add_imports_argument
from lavis_ext.config.loader import import_modules
from lavis_ext.config.schema import check
from lavis_ext.config.search import ranked
from lavis_ext.config.typed import typed
from lavis_ext.registry import KINDS as REGISTERED
from lavis_ext.registry import registered, registry

PACKAGE = "lavis_ext"
"""All of its modules are imported for what they register; runs import only what they use."""
NEED_OTHERS = (f"{PACKAGE}.lmms_eval", f"{PACKAGE}.serve.app")
"""Modules that need a program beside this library, or an extra; they register nothing."""


class Kind(NamedTuple):
    """A kind of registered classes: title, the section of their options, and an explanation."""

    title: str
    where: str
    about: str


KINDS: dict[str, Kind] = {
    "runner": Kind("Runners", "run", "The section `run`; `run.runner` names the class."),
    "model": Kind("Models", "model", "The section `model`; `model.arch` names the class."),
    "encoder": Kind(
        "Encoders",
        "model.streams.STREAM",
        "A stream of the model; `encoder` names the class.",
    ),
    "question_encoder": Kind(
        "Question encoders",
        "model.question_encoder",
        "Reads the questions for the objectives; `encoder` names the class.",
    ),
    "fusion": Kind("Fusions", "model.fusion", "The fusion; `name` names the class."),
    "objective": Kind(
        "Objectives",
        "model.objectives.NAME",
        "NAME is the objective's name in the registry.",
    ),
    "builder": Kind(
        "Data sets",
        "datasets.NAME",
        "NAME is the data set's name in the registry; `type` chooses its defaults.",
    ),
    "processor": Kind(
        "Processors",
        "datasets.NAME.*_processor.train",
        "How pictures (`vis_processor`) and texts (`text_processor`) are prepared; `.train` in "
        "training, `.eval` in evaluation. `name` names the class.",
    ),
    "task": Kind("Tasks", "task", "The section `task`; `run.task` names the class."),
    "lr_scheduler": Kind(
        "Schedules",
        "run.lr_sched",
        "Named by `run.lr_sched`; their options are keys of `run`.",
    ),
}
NAMES = {int: "whole number", float: "number", bool: "true or false", str: "string", Any: "mapping"}
MOST_FOUND = 15
"""Results of a search by words."""


@dataclass(frozen=True)
class Key:
    """A key with what its option says.

    Attributes:
        name: full key, such as ``run.log_freq``.
        help: meaning, in a sentence.
        type: type in words; ``section`` for one with keys of its own.
        choices: allowed values; empty for any.
        bounds: limits of a number.
        default: default in YAML's notation; empty for a section that is always there.
        may_change: whether a resumed run may have another value.
        owner: kind and name of the registered class that owns the section by default.
    """

    name: str
    help: str
    type: str
    choices: tuple[str, ...]
    bounds: str
    default: str
    may_change: bool
    owner: tuple[str, str] | None = None


@dataclass(frozen=True)
class Owner:
    """A registered class with its keys; None without options of its own."""

    kind: str
    name: str
    about: str
    keys: Sequence[Key] | None


def owners() -> list[Owner]:
    """All registered classes with their keys, by kind and name. Imports the whole package."""
    classes = _registered()
    found = []
    for kind, (_, where, _) in KINDS.items():
        for name, owner in sorted(classes.get(kind, {}).items()):
            schema = getattr(owner, "Config", None)
            keys = None
            if schema is not None:
                key = where.replace("NAME", name) if kind != "processor" else where
                others = _classes_by_config(classes, but=owner)
                keys = list(_keys(schema, key, others, _example(name, owner)))
            found.append(Owner(kind, name, _first_line(owner), keys))
    return found


def _classes_by_config(
    classes: Mapping[str, Mapping[str, Any]], but: Any
) -> dict[type, tuple[str, str]]:
    """The kind and name of the registered class that owns a dataclass of options."""
    return {
        owner.Config: (kind, name)
        for kind, named in classes.items()
        for name, owner in named.items()
        if getattr(owner, "Config", None) is not None and owner is not but
    }


def _registered() -> dict[str, dict[str, Any]]:
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if not module.name.endswith(".__main__") and module.name not in NEED_OTHERS:
            importlib.import_module(module.name)
    unknown = set(REGISTERED) - set(KINDS)
    if unknown:
        raise RuntimeError(f"{__name__}: KINDS lacks {', '.join(sorted(unknown))}")
    return {
        kind: {name: getattr(registry, f"get_{kind}_class")(name) for name in names}
        for kind, names in registered().items()
    }


def _example(name: str, owner: Any) -> Any:
    """A typed section of a model that has types: its sections show which dataclasses own them."""
    from omegaconf import OmegaConf

    kinds = list(owner.types()) if hasattr(owner, "types") else []
    if not kinds:
        return None
    section = owner.default_section(OmegaConf.create({"arch": name, "model_type": kinds[0]}))
    return typed(owner.Config, section, "model")


def _keys(
    schema: type, where: str, others: Mapping[type, tuple[str, str]], example: Any = None
) -> Iterator[Key]:
    hints = typing.get_type_hints(schema)
    for field, value in _fields(schema, where, example):
        name = f"{where}.{field.name}"
        nested = value if isinstance(value, type) else type(value)
        is_section = dataclasses.is_dataclass(value)
        owned = others.get(nested) if is_section else None
        optional = _without_none(hints[field.name]) is not hints[field.name]
        yield Key(
            name=name,
            help=field.metadata.get("help") or _first_line(nested),
            type="section" if is_section else _type(hints[field.name]),
            choices=tuple(map(_yaml, field.metadata.get("choices") or ())),
            bounds=_bounds(field.metadata),
            default=("null" if optional else "") if is_section else _yaml(value),
            may_change=field.metadata.get("may_change", False),
            owner=owned,
        )
        if is_section and not owned:
            yield from _keys(nested, name, others)


def _fields(
    schema: type, where: str, example: Any = None
) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass with their defaults; for a section, the dataclass that types it."""
    with_types = example or schema()
    # Checking gives sections their types. Defaults that need more from a config fail it, and what
    # is typed by then is all that the class says.
    with contextlib.suppress(UserError):
        check(with_types, where)
    untouched = schema()
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        value, default = getattr(with_types, field.name), getattr(untouched, field.name)
        wanted = _without_none(hints[field.name])
        if dataclasses.is_dataclass(value):
            yield field, value
        elif dataclasses.is_dataclass(wanted):
            yield field, wanted
        else:
            yield field, default


def _without_none(hint: Any) -> Any:
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is not typing.Union:
        return hint
    return next(each for each in typing.get_args(hint) if each is not type(None))


def _type(hint: Any) -> str:
    wanted = _without_none(hint)
    optional = " or null" if wanted is not hint else ""
    origin = typing.get_origin(wanted)
    if origin in (list, tuple):
        inner = typing.get_args(wanted)[0]
        return f"list, each a {NAMES.get(inner, _type(inner))}{optional}"
    return f"{NAMES.get(wanted, 'mapping')}{optional}"


def _bounds(metadata: Mapping[str, Any]) -> str:
    signs = {"at_least": "≥", "above": ">", "at_most": "≤"}
    return ", ".join(
        f"{sign} {metadata[name]}" for name, sign in signs.items() if metadata.get(name) is not None
    )


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(value)


def _first_line(owner: type) -> str:
    text = (owner.__doc__ or "").strip().partition("\n\n")[0].replace("``", "`")
    return " ".join(text.split())


@command
def main(argv: Sequence[str] | None = None) -> None:
    """List config keys, all of them or those that a pattern or words find."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext keys",
        description="List config keys with their defaults and meaning.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PATTERN",
        help="a key, the beginning of one (run.), one with * in it (run.*steps*), or words for "
        "what it does (log every steps)",
    )
    add_imports_argument(parser)
    arguments = parser.parse_args(argv)
    import_modules(arguments.imports)
    query = " ".join(arguments.words)
    found = matching(query, owners()) if query else owners()
    if not found:
        raise UserError(
            f"No config key has the words '{query}'. python -m lavis_ext keys lists them all."
        )
    parts: list[Table | str] = []
    for owner in found:
        if owner.keys:
            parts += [f"{KINDS[owner.kind].title}: {owner.name}", _table(owner.keys)]
    show(*parts)


def matching(query: str, known: Sequence[Owner]) -> list[Owner]:
    """Owners with only those of their keys that a pattern has or, failing that, words find.

    The best key and its owner come first.
    """
    helps = {key.name: key.help for owner in known for key in owner.keys or ()}
    pattern = query if "*" in query or "?" in query else f"{query}*"
    names = fnmatch.filter(helps, pattern)
    if not names:
        names = [name for name in helps if name.endswith(f".{query}")]
        names = [*dict.fromkeys([*names, *ranked(query, helps)])][:MOST_FOUND]
    place = {name: number for number, name in enumerate(names)}
    found = []
    for owner in known:
        keys = [key for key in owner.keys or () if key.name in place]
        if keys:
            keys.sort(key=lambda key: place[key.name])
            found.append((place[keys[0].name], dataclasses.replace(owner, keys=keys)))
    return [owner for _, owner in sorted(found, key=lambda each: each[0])]


def _table(keys: Sequence[Key]) -> Table:
    rows = []
    for key in keys:
        limits = f"one of {', '.join(key.choices)}" if key.choices else key.bounds
        rows.append((key.name, key.default, f"{key.help}{f' ({limits})' * bool(limits)}"))
    return Table(tuple(rows), ("key", "default", "meaning"), (False, False, False))
