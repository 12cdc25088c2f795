"""The README's examples work."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lavis_ext.config.loader import Config
from lavis_ext.models.base import total_loss
from tests.tiny import HEAD, make_model, make_samples

pytestmark = pytest.mark.beyond_core

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}[^\n]*\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_a_custom_fusion_trains_from_a_yaml(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: Callable[..., Config],
) -> None:
    (tmp_path / "my_fusion.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_fusion", raising=False)
    shown = yaml.safe_load(block("yaml"))
    fusion = shown["model"]["fusion"]
    cfg = configured(
        f"imports={shown['imports']}", *(f"model.fusion.{k}={v}" for k, v in fusion.items())
    )
    assert (cfg.model.fusion.name, cfg.model.fusion.heads) == ("cross", 8)
    model = make_model({"answer": HEAD}, fusion)
    total_loss(model(make_samples())).backward()
    gradient = model.fusion.gate.grad
    assert gradient is not None
    assert torch.any(gradient != 0)


def test_the_example_is_as_short_as_documented() -> None:
    code = block("python").split("@dataclass")[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_every_file_and_command_that_it_names_exists() -> None:
    for path in re.findall(r"\b((?:projects|run_scripts|docs|tests)/[\w./-]+)", README):
        assert (PROJECT / path).exists(), path
    for module in re.findall(r"python -m (lavis_ext[\w.]*)", README):
        file = PROJECT / Path(*module.split("."))
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


PAGES = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((PROJECT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path, test in re.findall(
        r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8")
    ):
        code = (PROJECT / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in code, (path, test)


def test_it_has_at_most_1500_words() -> None:
    assert len(README.split()) <= 1500


def test_each_trap_names_tests_that_exist() -> None:
    traps = (PROJECT / "docs" / "traps.md").read_text(encoding="utf-8")
    for section in traps.split("\n## ")[1:]:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
        assert named, section
        for path, test in named:
            assert f"def {test}(" in (PROJECT / path).read_text(encoding="utf-8"), (path, test)
