"""Everything that a run needs is listed at once, and fetched by one command."""

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_ext.checkpoints import sources
from lavis_ext.checkpoints.needs import check_needs, weights_needed
from lavis_ext.checkpoints.sources import CACHED, FOUND, MISSING, TO_FETCH, locate
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.encoders.timm import TimmConfig
from lavis_ext.fetch import CACHES, main
from lavis_ext.runners.dry_run import describe
from lavis_ext.runners.launch import started
from lavis_ext.tasks.gqa import GqaFusionTask, GqaReadingComprehensionFusionTask
from tests.runners.test_runner import SPLITS, TINY_MODEL

Configured = Callable[..., Config]
NO_HUB = "nobody/no-such-model"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network but this machine's own, and empty caches."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server that has the file ``weights.pt``."""
    folder = tmp_path / "site"
    folder.mkdir()
    torch.save({"model": {"layer": torch.zeros(300)}}, folder / "weights.pt")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_source_is_located_without_downloading_it(site: str, tmp_path: Path) -> None:
    there = locate(f"{site}/weights.pt", key="k")
    size = (tmp_path / "site" / "weights.pt").stat().st_size
    assert (there.state, there.size) == (TO_FETCH, size)
    assert not (tmp_path / "torch").exists()
    sources.resolve(f"{site}/weights.pt", key="k")
    assert locate(f"{site}/weights.pt", key="k").state == CACHED
    local = locate(str(tmp_path / "site" / "weights.pt"), key="k")
    assert (local.state, local.size) == (FOUND, size)
    for source in (f"{site}/none.pt", "no/such/file.pt", NO_HUB):
        assert locate(source, key="k").state == MISSING, source


def test_all_missing_files_are_listed_before_data_is_read(
    configured: Configured, tiny_options: list[str], tmp_path: Path
) -> None:
    cfg = configured(
        *tiny_options,
        *TINY_MODEL,
        "model.streams.grid.weights=no/blip.pth",
        "model.streams.segmentation.weights=no/sam.pt",
        f"model.reader.weights={NO_HUB}",
    )
    missing = r"2 of the \d+ files .* missing"
    with pytest.raises(UserError, match=missing) as caught, started(cfg, SPLITS):
        pass
    assert "no/blip.pth" in str(caught.value)
    assert "no/sam.pt" in str(caught.value)
    # Training does without the reader, which evaluations by answers need.
    assert NO_HUB not in str(caught.value)
    assert [need.key for need in GqaFusionTask.needs(cfg, SPLITS) if need.missing and need.later]
    with pytest.raises(UserError, match=NO_HUB):
        check_needs(GqaReadingComprehensionFusionTask.needs(cfg, SPLITS))
    assert not (tmp_path / "output").exists()


def test_a_dry_run_plans_and_then_fails_for_weights_that_are_not_there(
    configured: Configured, tiny_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configured(*tiny_options, *TINY_MODEL, "model.streams.grid.weights=no/blip.pth")
    with pytest.raises(UserError, match=r"no/blip\.pth"):
        describe(cfg, SPLITS)
    out = capsys.readouterr().out
    assert "FLOPs" in out
    assert "model.captioner.weights" in out
    assert "(evaluation)" in out


def test_fetch_downloads_the_configs_files(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = tmp_path / "carried"
    for name, below in CACHES.items():
        monkeypatch.setenv(name, str(carried / below))
    given = ["--cfg-path", "projects/pnp-vqa/train/mini_train.yaml", "--to", str(carried)]
    given += ["--options", f"model.streams.segmentation.weights={site}/weights.pt"]
    data = f"datasets.gqa_fusion.mini_gqa.root={tmp_path / 'data'}"
    main([*given, data, "--list"])
    assert not list(carried.rglob("*weights.pt"))
    main([*given, data])
    assert len(list((carried / "torch").rglob("*weights.pt"))) == 1
    out = capsys.readouterr().out
    assert "fetching model.streams.segmentation.weights" in out
    assert f"export TORCH_HOME={carried / 'torch'}" in out
    with pytest.raises(SystemExit) as ended:
        main([*given, "model.reader.weights=no/such.pt"])
    assert ended.value.code == 2
    assert "no/such.pt" in capsys.readouterr().err


def test_fetch_restarts_with_the_caches_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def started_again(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        seen.update(environment)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", started_again)
    with pytest.raises(SystemExit):
        main(["--cfg-path", "x.yaml", "--to", str(tmp_path / "to")])
    assert seen["HF_HOME"] == str(tmp_path / "to" / "huggingface")


def test_timms_own_weights_are_looked_for_on_the_hub() -> None:
    (need,) = weights_needed(TimmConfig(model="resnet18", weights="pretrained"), "model.streams.a")
    assert need.key == "model.streams.a.weights"
    assert "timm/resnet18" in need.located.place
    assert weights_needed(TimmConfig(model="resnet18"), "model.streams.a") == []
