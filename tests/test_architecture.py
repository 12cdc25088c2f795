"""Imports point one way, along the way of the data."""

import ast
import re
from pathlib import Path

import pytest

from tests.sources import parsed

PACKAGE = Path(__file__).parents[1] / "lavis_ext"

ORDER = [
    # What everything stands on.
    "common",
    "registry",
    "config",
    "checkpoints",
    "distributed",
    # The data's way.
    "datasets",
    "processors",
    "encoders",
    "fusion",
    "decoders",
    "objectives",
    "models",
    "features",
    "evaluation",
    "tasks",
    "runners",
    "sweep",
    "pretraining",
    "status",
    "ask",
    "serve",
    "export",
    "fetch",
    "torchrun",
    "hub",
    "lmms_eval",
]
"""Folders and files of the package; each may import those before it."""
ENTRY_POINTS = {"__init__.py", "__main__.py", "features/extract.py"}
MODULES = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if str(path.relative_to(PACKAGE)) not in ENTRY_POINTS
)


def part_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imported_parts(source: str) -> set[str]:
    """Parts of the package that a module imports, in functions too, but not for types alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        found.update(n.split(".")[1] for n in names if n.startswith("lavis_ext."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(parsed(source))
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_earlier_packages(module: Path) -> None:
    part = part_of(module)
    assert part in ORDER, f"{part} has no place in the order yet"
    allowed = ORDER[: ORDER.index(part) + 1]
    imported = imported_parts((PACKAGE / module).read_text(encoding="utf-8"))
    assert not imported - {*allowed}, f"{module} imports what comes after it"


def test_imports_in_functions_and_of_names_are_seen() -> None:
    source = """
from typing import TYPE_CHECKING
import lavis_ext.common.files
from lavis_ext import distributed
if TYPE_CHECKING:
    from lavis_ext.runners import plan
def f():
    from lavis_ext.encoders.blip.encoder import BlipEncoder
"""
    assert imported_parts(source) == {"common", "distributed", "encoders"}


CORE = ("runners", "sweep", "config", "features", "distributed", "common", "checkpoints")
FAMILIES = re.compile(r"(?<![a-z])(gqa|vqa|pnp|blip|e?sam|efficient_?sam)(?![a-z])", re.IGNORECASE)


@pytest.mark.parametrize("part", CORE)
def test_the_core_mentions_no_task_and_no_model(part: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted((PACKAGE / part).rglob("*"))
        if path.suffix in (".py", ".yaml")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FAMILIES.search(line)
    ]
    assert not found
