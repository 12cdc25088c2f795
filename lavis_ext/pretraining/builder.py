"""Builders of the data sets that the miniature's parts are trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from omegaconf import DictConfig

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.datasets.gqa.grounded_questions import read_grounded_questions
from lavis_ext.datasets.gqa.object_masks import read_object_masks
from lavis_ext.datasets.gqa.scene_graphs import read_scene_graphs
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.distributed.process_group import main_process_first
from lavis_ext.pretraining.datasets import PretrainingDataConfig, PretrainingDataset, Split
from lavis_ext.pretraining.description_data import DescriptionDataset
from lavis_ext.pretraining.mask_data import MaskDataset
from lavis_ext.pretraining.reading_data import ReadingDataset
from lavis_ext.registry import BaseDatasetBuilder, registry

CONFIGS = Path(__file__).parent / "configs"


class PretrainingBuilder(BaseDatasetBuilder):
    """Makes mini-GQA where it isn't there yet, and data sets of its splits.

    Args:
        config: the section ``datasets.<name>``, typed or as a mapping.
    """

    dataset_class: ClassVar[type[PretrainingDataset]]
    Config: ClassVar[type[PretrainingDataConfig]]
    DATASET_CONFIG_DICT: ClassVar[Mapping[str, str]]

    def __init__(self, config: PretrainingDataConfig | DictConfig) -> None:
        if not isinstance(config, PretrainingDataConfig):
            config = typed(self.Config, config, "datasets")
        self.config = config

    @classmethod
    def default_config_path(cls, type: str | None = None) -> str:
        """The default config of a type. Raises UserError naming the types there are."""
        type = type or "mini"
        if type not in cls.DATASET_CONFIG_DICT:
            raise UserError(
                f"The data set type '{type}' isn't known; there are: "
                f"{', '.join(cls.DATASET_CONFIG_DICT)}. Set `type: mini`."
            )
        return cls.DATASET_CONFIG_DICT[type]

    def build_datasets(
        self, sizes: Mapping[str, int | None], *, seed: int = 0
    ) -> dict[str, PretrainingDataset]:
        """Data sets by split, each with the size of its sample or None for all of it."""
        root = Path(self.config.root)
        with main_process_first():
            make_mini_gqa(root, images=self.config.images, seed=self.config.seed)
        return {
            split: self.dataset_class(self.config, read_split(root, split), size, seed)
            for split, size in sizes.items()
        }


def read_split(root: Path, split: str) -> Split:
    """Scene graphs and balanced questions of a mini-GQA's split."""
    graphs = read_scene_graphs(root / "sceneGraphs" / f"{split}_sceneGraphs.json")
    return Split(
        root,
        graphs,
        read_object_masks(root, split, graphs),
        read_grounded_questions(root / "questions" / f"{split}_balanced_questions.json"),
    )


@registry.register_builder("mini_gqa_descriptions")
class DescriptionBuilder(PretrainingBuilder):
    """For BLIP: captions, and texts that match or don't."""

    DATASET_CONFIG_DICT = {"mini": str(CONFIGS / "mini_gqa_descriptions" / "mini.yaml")}
    dataset_class = DescriptionDataset
    Config = DescriptionDataset.Config


@registry.register_builder("mini_gqa_masks")
class MaskBuilder(PretrainingBuilder):
    """For EfficientSAM: prompts and masks."""

    DATASET_CONFIG_DICT = {"mini": str(CONFIGS / "mini_gqa_masks" / "mini.yaml")}
    dataset_class = MaskDataset
    Config = MaskDataset.Config


@registry.register_builder("mini_gqa_reading")
class ReadingBuilder(PretrainingBuilder):
    """For the reader: questions, captions and answers."""

    DATASET_CONFIG_DICT = {"mini": str(CONFIGS / "mini_gqa_reading" / "mini.yaml")}
    dataset_class = ReadingDataset
    Config = ReadingDataset.Config
