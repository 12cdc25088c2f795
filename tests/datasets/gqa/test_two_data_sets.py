"""A run on two folders in GQA's layout, with images and with stored features."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.registry import registry
from lavis_ext.runners.launch import started
from tests.runners.test_runner import TINY_MODEL

SPLITS = ["train", "val", "testdev"]
IMAGES = 20


@pytest.fixture(scope="module")
def second_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini-GQA with other scenes. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("second") / "mini_gqa"
    make_mini_gqa(folder, images=IMAGES, seed=7)
    return folder


@pytest.fixture
def options(
    tiny_options: list[str], second_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A run with two batches of the first data set for each of the second."""
    second = type("GqaSecond", (GqaFusionBuilder,), {})
    monkeypatch.setitem(registry.mapping["builder_name_mapping"], "gqa_second", second)
    return [
        *(*tiny_options, *TINY_MODEL),
        "datasets.gqa_second.type=mini",
        f"datasets.gqa_second.mini_gqa.root={second_folder}",
        f"datasets.gqa_second.mini_gqa.images={IMAGES}",
        "datasets.gqa_second.mini_gqa.seed=7",
        "run.train_dataset_ratios={gqa_fusion: 2, gqa_second: 1}",
        "run.trainable=null",
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Path, bool]]:
    """Training batches by image folder, and by whether they hold stored tokens."""
    counts: Counter[tuple[Path, bool]] = Counter()
    original = GqaFusionDataset.__getitems__

    def counting(self: GqaFusionDataset, rows: BatchRows) -> Any:
        batch = original(self, rows)
        if rows.training and not self.black:  # the check of memory reads no image
            counts[self.images.folder.parent, "tokens" in batch] += 1
        return batch

    monkeypatch.setattr(GqaFusionDataset, "__getitems__", counting)
    return counts


@pytest.mark.parametrize("stored", [False, True])
def test_two_gqa_folders_train_by_their_ratios(
    configured: Callable[..., Config],
    options: list[str],
    mini_gqa: Path,
    second_folder: Path,
    drawn: Counter[tuple[Path, bool]],
    tmp_path: Path,
    stored: bool,
) -> None:
    root = tmp_path / "features"
    features = [f"run.features.root={root}", "run.features.make=true"] if stored else []
    with started(configured(*options, *features), SPLITS) as runner:
        metrics = runner.train()
    assert drawn.keys() == {(mini_gqa, stored), (second_folder, stored)}
    first, second = drawn[mini_gqa, stored], drawn[second_folder, stored]
    assert (first, second) == (4, 2)
    names = {f"{name}.{split}" for name in ("gqa_fusion", "gqa_second") for split in SPLITS[1:]}
    assert metrics.keys() == names
    assert all("answer_accuracy" in each for each in metrics.values())
    if stored:
        # Ids of images are equal in both folders, so stores must not be shared.
        stores = [path.parent.relative_to(root) for path in root.rglob("index.arrow")]
        assert sorted((str(path.parent), path.name.split("-")[0]) for path in stores) == [
            (name, stream)
            for name in ("gqa_fusion", "gqa_second")
            for stream in ("grid", "segmentation")
        ]


def test_errors_of_the_second_data_set_name_its_own_keys(
    configured: Callable[..., Config], options: list[str], second_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^datasets\.gqa_second\.type is 'minni'; .* 'mini'\?"):
        configured(*options, "datasets.gqa_second.type=minni")
    folder = tmp_path / "without_images"
    shutil.copytree(second_folder, folder, ignore=shutil.ignore_patterns("images"))
    config = configured(*options, f"datasets.gqa_second.root={folder}")
    with pytest.raises(UserError, match=r"datasets\.gqa_second\.images"), started(config, SPLITS):
        pass
