"""A hook of MkDocs: the page of every config key, made from the registry when the site is built.

    python docs/hooks/config_reference.py     # prints the page

``python -m lavis_ext keys`` prints the same keys. Nothing is listed here by name.
"""

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavis_ext.config.keys import Key

PAGE = "reference/config.md"
HEADER = "| key | meaning | type | limits | default | may change |\n" + "| --- " * 6 + "|"
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
    from lavis_ext.config.keys import KINDS, owners

    found = owners()
    parts = [INTRODUCTION]
    for kind, (title, _, about) in KINDS.items():
        parts += [f"## {title} {{#{kind}}}", about]
        for owner in found:
            if owner.kind != kind:
                continue
            parts.append(f"### {owner.name} {{#{anchor(kind, owner.name)}}}")
            if owner.keys is None:
                parts.append(owner.about + " No options of its own.")
                continue
            rows = list(_rows(owner.keys))
            parts.append(owner.about)
            parts.append("\n".join([HEADER, *rows]) if rows else "It has no options.")
    return "\n\n".join(parts) + "\n"


def anchor(kind: str, name: str) -> str:
    """The anchor of a registered class."""
    return f"{kind}-{name.replace('_', '-')}"


def _rows(keys: "Sequence[Key]") -> Iterator[str]:
    for key in keys:
        meaning = _text(key.help)
        if key.owner:
            kind, name = key.owner
            meaning += f" By default [{name}](#{anchor(kind, name)}); see [{kind}](#{kind})."
        cells = [
            _code(key.name),
            meaning,
            key.type,
            ", ".join(map(_code, key.choices)) or key.bounds,
            _code(key.default) if key.default else "",
            "yes" if key.may_change else "",
        ]
        yield f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _text(text: str) -> str:
    plain = html.escape(" ".join(text.split()), quote=False)
    for mark in "|*_":
        plain = plain.replace(mark, f"\\{mark}")
    return plain if plain.endswith(".") else f"{plain}."


def on_files(files: Any, config: Any) -> Any:
    """Called by MkDocs; adds the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


if __name__ == "__main__":
    print(page())
