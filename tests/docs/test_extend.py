"""The encoder of docs/extend.md trains."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lavis_ext.config.loader import Config
from lavis_ext.runners.launch import started

pytestmark = [pytest.mark.beyond_core, pytest.mark.usefixtures("registry_as_installed")]

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PAGE, flags=re.DOTALL | re.MULTILINE)
    return found


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}[^\n]*\n(.*?)```", section("An encoder"), flags=re.DOTALL)
    return found


def test_the_encoder_trains_two_steps_as_a_third_stream(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_options: list[str],
    configured: Callable[..., Config],
) -> None:
    (tmp_path / "my_encoder.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    shown = yaml.safe_load(block("yaml"))
    (stream,) = shown["model"]["streams"].values()
    cfg = configured(
        f"imports={shown['imports']}",
        *(f"model.streams.color.{key}={value}" for key, value in stream.items()),
        *tiny_options,
        "run.max_steps=2",
        "run.log_freq=1",
        "run.test_splits=[]",
        "run.report=false",
    )
    with started(cfg, cfg.run.splits) as runner:
        name = "streams.color.patches.weight"
        before = dict(runner.model.named_parameters())[name].detach().clone()
        runner.train()
        folder = Path(runner.output_dir)
    (best,) = folder.glob("*_best.safetensors")
    after = load_file(best)[name]
    assert after.shape == (32, 3, 16, 16)
    assert not after.equal(before)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert max(line.get("step", 0) for line in lines) == 2
    assert "my_encoder" in sys.modules
