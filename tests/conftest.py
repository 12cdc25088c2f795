"""Fixtures that several test files share."""

import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lavis_ext.runners.launch  # noqa: F401  (registers all that is installed)
from lavis_ext.config.loader import Config
from lavis_ext.datasets import faults as data_faults
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.registry import registry

# Tiny models gain nothing from threads, and lose much where other programs want the cores.
torch.set_num_threads(1)

PROJECT = Path(__file__).parents[1]
MINI_IMAGES = 40


REGISTERED = {
    kind: frozenset(names)
    for kind, names in registry.mapping.items()
    if kind.endswith("_name_mapping")
}
"""Names before any test's module has registered more."""


@pytest.fixture
def registry_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAVIS's registry without what tests and their modules have added."""
    for kind, names in REGISTERED.items():
        kept = {name: each for name, each in registry.mapping[kind].items() if name in names}
        monkeypatch.setitem(registry.mapping, kind, kept)


@pytest.fixture(scope="session")
def mini_gqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini-GQA of 40 images (32 train, 4 val, 4 testdev). Tests must not write to it."""
    folder = tmp_path_factory.mktemp("data") / "mini_gqa"
    make_mini_gqa(folder, images=MINI_IMAGES)
    return folder


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be read is tried again at once."""
    monkeypatch.setattr(data_faults, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever logging a run of an earlier test has set up."""
    monkeypatch.setattr(logging.getLogger("lavis_ext"), "propagate", True)


@pytest.fixture
def tiny_options(mini_gqa: Path, tmp_path: Path) -> list[str]:
    """Options that turn ``gqa_small.yaml`` into a run of seconds, its output in ``tmp_path``."""
    return [
        f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}",
        f"datasets.gqa_fusion.mini_gqa.images={MINI_IMAGES}",
        f"run.output_dir={tmp_path / 'output'}",
        "run.small_train_size=48",
        "run.batch_size_train=16",
        "run.batch_size_eval=16",
        "run.max_epoch=1",
        "run.num_workers=0",
        "run.device=cpu",
    ]


@pytest.fixture
def tiny_arguments(tiny_options: list[str]) -> list[str]:
    """The command-line arguments of that run, but for the program's name."""
    return ["--cfg-path", str(SMALL), "--options", *tiny_options]


SMALL = PROJECT / "projects" / "pnp-vqa" / "train" / "gqa_small.yaml"
"""The smallest config that the project ships."""


@pytest.fixture(scope="session")
def configured() -> Callable[..., Config]:
    """``configured("run.max_epoch=3", ..., cfg_path=...)``: the config, as a program makes it."""

    def make(*options: str, cfg_path: Path | str = SMALL) -> Config:
        return Config(Namespace(cfg_path=str(cfg_path), options=list(options)))

    return make
