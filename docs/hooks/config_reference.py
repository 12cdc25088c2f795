"""A hook of MkDocs: the page of every config key, made from the registry when the site is built.

    python docs/hooks/config_reference.py     # prints the page

What a class registers is on the page: its ``Config``, a dataclass whose fields carry help and
limits. Nothing is listed here by name.
"""

import contextlib
import dataclasses
import html
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

PAGE = "reference/config.md"
PACKAGE = "lavis_ext"
"""All of its modules are imported for what they register; runs import only what they use."""

KINDS: dict[str, tuple[str, str, str]] = {
    "runner": ("Runners", "run", "The section `run`; `run.runner` names the class."),
    "model": ("Models", "model", "The section `model`; `model.arch` names the class."),
    "encoder": (
        "Encoders",
        "model.streams.STREAM",
        "A stream of the model; `encoder` names the class.",
    ),
    "fusion": ("Fusions", "model.fusion", "The fusion; `name` names the class."),
    "objective": (
        "Objectives",
        "model.objectives.NAME",
        "NAME is the objective's name in the registry.",
    ),
    "builder": (
        "Data sets",
        "datasets.NAME",
        "NAME is the data set's name in the registry; `type` chooses its defaults.",
    ),
    "processor": (
        "Processors",
        "datasets.NAME.*_processor.train",
        "How pictures (`vis_processor`) and texts (`text_processor`) are prepared; `.train` in "
        "training, `.eval` in evaluation. `name` names the class.",
    ),
    "task": ("Tasks", "task", "The section `task`; `run.task` names the class."),
    "lr_scheduler": (
        "Schedules",
        "run.lr_sched",
        "Named by `run.lr_sched`; their options are keys of `run`.",
    ),
}
HEADER = "| key | meaning | type | limits | default | may change |\n" + "| --- " * 6 + "|"
NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "mapping"}
INTRODUCTION = """# Every config key

Made from the registry when this site is built: the dataclass that a registered class declares as
its `Config`. **May change** says whether a resumed run may have another value (see
[resuming](../resume.md)); a key without it has to stay. Defaults are those of the class; a model's
type and a data set's type have defaults of their own, which win (see [configs](../configs.md)).

Besides these sections, a config may list modules under `imports`; they are imported first, which is
how classes from outside the package get into the registry.
"""


def page() -> str:
    """The page, as Markdown."""
    registered = _registered()
    parts = [INTRODUCTION]
    for kind, (title, where, about) in KINDS.items():
        classes = registered.get(kind, {})
        parts += [f"## {title} {{#{kind}}}", about]
        for name, owner in sorted(classes.items()):
            parts.append(f"### {name} {{#{anchor(kind, name)}}}")
            schema = getattr(owner, "Config", None)
            if schema is None:
                parts.append(_first_line(owner) + " No options of its own.")
                continue
            key = where.replace("NAME", name) if kind != "processor" else where
            owners = classes_by_config(registered, but=owner)
            rows = list(_rows(schema, key, owners, _example(name, owner)))
            parts.append(_first_line(owner))
            parts.append("\n".join([HEADER, *rows]) if rows else "It has no options.")
    return "\n\n".join(parts) + "\n"


def anchor(kind: str, name: str) -> str:
    """The anchor of a registered class."""
    return f"{kind}-{name.replace('_', '-')}"


def classes_by_config(
    registered: Mapping[str, Mapping[str, type]], but: type
) -> dict[type, tuple[str, str]]:
    """The kind and name of the registered class that owns a dataclass of options."""
    return {
        owner.Config: (kind, name)
        for kind, classes in registered.items()
        for name, owner in classes.items()
        if getattr(owner, "Config", None) is not None and owner is not but
    }


def _registered() -> dict[str, dict[str, type]]:
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    from lavis_ext.registry import KINDS as KNOWN
    from lavis_ext.registry import registered, registry

    unknown = set(KNOWN) - set(KINDS)
    if unknown:
        raise RuntimeError(f"{__file__}: KINDS lacks {', '.join(sorted(unknown))}")
    return {
        kind: {name: getattr(registry, f"get_{kind}_class")(name) for name in names}
        for kind, names in registered().items()
    }


def _example(name: str, owner: Any) -> Any:
    """A typed section of a model that has types: its sections show which dataclasses own them."""
    from omegaconf import OmegaConf

    from lavis_ext.config.typed import typed

    kinds = list(owner.types()) if hasattr(owner, "types") else []
    if not kinds:
        return None
    section = owner.default_section(OmegaConf.create({"arch": name, "model_type": kinds[0]}))
    return typed(owner.Config, section, "model")


def _rows(
    schema: type, where: str, owners: Mapping[type, tuple[str, str]], example: Any = None
) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    for field, value in _fields(schema, where, example):
        key = f"{where}.{field.name}"
        nested = value if isinstance(value, type) else type(value)
        is_section = dataclasses.is_dataclass(value)
        owned = owners.get(nested) if is_section else None
        optional = _without_none(hints[field.name]) is not hints[field.name]
        default = ("`null`" if optional else "") if is_section else _shown(value)
        kind = "section" if is_section else _type(hints[field.name])
        help_ = _text(field.metadata.get("help") or _first_line(nested))
        if owned:
            help_ += f" By default [{owned[1]}](#{anchor(*owned)}); see [{owned[0]}](#{owned[0]})."
        cells = [
            f"`{key}`",
            help_,
            kind,
            _limits(field.metadata),
            default,
            "yes" if field.metadata.get("may_change", False) else "",
        ]
        yield f"| {' | '.join(cells)} |"
        if is_section and not owned:
            yield from _rows(nested, key, owners)


def _fields(
    schema: type, where: str, example: Any = None
) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass with their defaults; for a section, the dataclass that types it."""
    from lavis_ext.common.errors import UserError
    from lavis_ext.config.schema import check

    typed = example or schema()
    # Checking gives sections their types. Defaults that need more from a config fail it, and what
    # is typed by then is all that the class says.
    with contextlib.suppress(UserError):
        check(typed, where)
    untouched = schema()
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        value, default = getattr(typed, field.name), getattr(untouched, field.name)
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


def _limits(metadata: Mapping[str, Any]) -> str:
    choices = metadata.get("choices")
    if choices is not None:
        return ", ".join(_shown(each) for each in choices)
    signs = {"at_least": "≥", "above": ">", "at_most": "≤"}
    limits = [
        f"{sign} {metadata[name]}" for name, sign in signs.items() if metadata.get(name) is not None
    ]
    return ", ".join(limits)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if value == "":
        return '`""`'
    return f"`{value}`"


def _text(text: str) -> str:
    plain = html.escape(" ".join(text.split()), quote=False)
    for mark in "|*_":
        plain = plain.replace(mark, f"\\{mark}")
    return plain if plain.endswith(".") else f"{plain}."


def _first_line(owner: type) -> str:
    text = (owner.__doc__ or "").strip().partition("\n\n")[0].replace("``", "`")
    return " ".join(text.split())


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs; adds the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


if __name__ == "__main__":
    print(page())
