"""Shared fixtures."""

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lavis_ext.runners.launch  # noqa: F401  (registers all that is installed)
from lavis_ext.config.loader import Config
from lavis_ext.datasets import faults as data_faults
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.registry import registry
from lavis_ext.runners.trainer import Stepper

# Tiny models gain nothing from threads, and lose much where other programs want the cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start

PROJECT = Path(__file__).parents[1]
MINI_IMAGES = 40


REGISTERED = {
    kind: frozenset(names)
    for kind, names in registry.mapping.items()
    if kind.endswith("_name_mapping")
}
"""Names before any test's module has registered more."""


LONGEST = (
    "runners/test_resuming.py",
    "distributed",
    "features",
    "robustness/test_wrong_inputs.py",
    "benchmarks",
    "runners",
    "docs",
    "examples",
)
"""Files and folders of tests that take longest. Started last, one would keep a worker waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files by ``LONGEST``."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(PROJECT / "tests").as_posix()
        return next((n for n, name in enumerate(LONGEST) if path.startswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture
def registry_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAVIS's registry without the entries added by tests."""
    for kind, names in REGISTERED.items():
        kept = {name: each for name, each in registry.mapping[kind].items() if name in names}
        monkeypatch.setitem(registry.mapping, kind, kept)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache of the tests' own, also for the programs that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def mini_gqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini-GQA of 40 images (32 train, 4 val, 4 testdev). Tests must not write to it."""
    folder = tmp_path_factory.mktemp("data") / "mini_gqa"
    make_mini_gqa(folder, images=MINI_IMAGES)
    return folder


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """``before_step(5, do)`` calls ``do`` once, when a run begins step 5."""

    def at(wanted: int, do: Callable[[], Any]) -> None:
        step = Stepper.step
        done = []

        def watched(self: Stepper, group: Any, epoch: int, steps: int) -> torch.Tensor:
            if steps == wanted - 1 and not done:
                done.append(True)
                do()
            return step(self, group, epoch, steps)

        monkeypatch.setattr(Stepper, "step", watched)

    return at


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry failed reads without pauses."""
    monkeypatch.setattr(data_faults, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the logging setup of earlier tests' runs."""
    monkeypatch.setattr(logging.getLogger("lavis_ext"), "propagate", True)


@pytest.fixture
def tiny_options(mini_gqa: Path, tmp_path: Path) -> list[str]:
    """Options that turn ``gqa_small.yaml`` into a run of seconds, its output in ``tmp_path``."""
    return [
        f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}",
        f"datasets.gqa_fusion.mini_gqa.images={MINI_IMAGES}",
        f"run.output_dir={tmp_path / 'output'}",
        "run.small_train_size=48",
        "run.sample_by=examples",  # exactly so many, so that steps can be counted
        "run.batch_size_train=16",
        "run.batch_size_eval=16",
        "run.max_epoch=1",
        "run.num_workers=0",
        "run.device=cpu",
    ]


@pytest.fixture
def tiny_arguments(tiny_options: list[str]) -> list[str]:
    """Command-line arguments of that run, without the program's name."""
    return ["--cfg-path", str(SMALL), "--options", *tiny_options]


SMALL = PROJECT / "projects" / "pnp-vqa" / "train" / "gqa_small.yaml"
"""The smallest config that the project ships."""


@pytest.fixture(scope="session")
def configured() -> Callable[..., Config]:
    """``configured("run.max_epoch=3", ..., cfg_path=...)`` builds the config as programs do."""

    def make(*options: str, cfg_path: Path | str = SMALL) -> Config:
        return Config(Namespace(cfg_path=str(cfg_path), options=list(options)))

    return make
