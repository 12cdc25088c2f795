"""Builders of the data sets that pretrain parts of the miniature."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lavis_ext.datasets.base import DatasetBuilder
from lavis_ext.datasets.gqa.grounded_questions import read_grounded_questions
from lavis_ext.datasets.gqa.object_masks import read_object_masks
from lavis_ext.datasets.gqa.scene_graphs import read_scene_graphs
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.datasets.samples import SampleSize
from lavis_ext.distributed.process_group import main_process_first
from lavis_ext.pretraining.datasets import PretrainingDataConfig, PretrainingDataset, Split
from lavis_ext.pretraining.description_data import DescriptionDataset
from lavis_ext.pretraining.mask_data import MaskDataset
from lavis_ext.pretraining.reading_data import ReadingDataset
from lavis_ext.registry import registry

CONFIGS = Path(__file__).parent / "configs"


def configs(name: str) -> dict[str, str]:
    """Default configs of a builder by type, one for each world."""
    return {type_: str(CONFIGS / name / f"{type_}.yaml") for type_ in ("mini", "fine")}


class PretrainingBuilder(DatasetBuilder):
    """Base class: writes mini-GQA on first use, and builds data sets of its splits."""

    Config: ClassVar[type[PretrainingDataConfig]]
    config: PretrainingDataConfig
    dataset_class: ClassVar[type[PretrainingDataset]]

    def build_datasets(
        self, sizes: Mapping[str, SampleSize | None], *, seed: int = 0, **options: Any
    ) -> dict[str, PretrainingDataset]:
        """Data sets by split, each a sample of the given size. ``options`` are ignored."""
        root = Path(self.config.root)
        with main_process_first():
            make_mini_gqa(
                root, images=self.config.images, seed=self.config.seed, world=self.config.world
            )
        return {
            split: self.dataset_class(self.config, read_split(root, split), size, seed)
            for split, size in sizes.items()
        }


def read_split(root: Path, split: str) -> Split:
    """Scene graphs, masks and balanced questions of a split of the mini-GQA in ``root``.

    Raises UserError for files that are missing or damaged.
    """
    graphs = read_scene_graphs(root / "sceneGraphs" / f"{split}_sceneGraphs.json")
    return Split(
        root,
        graphs,
        read_object_masks(root, split, graphs),
        read_grounded_questions(root / "questions" / f"{split}_balanced_questions.json"),
    )


@registry.register_builder("mini_gqa_descriptions")
class DescriptionBuilder(PretrainingBuilder):
    """Captions, and matching and mismatched texts, for BLIP."""

    DATASET_CONFIG_DICT = configs("mini_gqa_descriptions")
    dataset_class = DescriptionDataset
    Config = DescriptionDataset.Config


@registry.register_builder("mini_gqa_masks")
class MaskBuilder(PretrainingBuilder):
    """Prompts and masks, for EfficientSAM."""

    DATASET_CONFIG_DICT = configs("mini_gqa_masks")
    dataset_class = MaskDataset
    Config = MaskDataset.Config


@registry.register_builder("mini_gqa_reading")
class ReadingBuilder(PretrainingBuilder):
    """Questions, captions and answers, for the reader."""

    DATASET_CONFIG_DICT = configs("mini_gqa_reading")
    dataset_class = ReadingDataset
    Config = ReadingDataset.Config
