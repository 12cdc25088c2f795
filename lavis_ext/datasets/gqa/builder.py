"""The builder ``gqa_fusion``: from a folder in GQA's layout to data sets by split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_ext.checkpoints.needs import Need
from lavis_ext.checkpoints.sources import Located
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.gqa.questions import find_questions, gqa_files
from lavis_ext.datasets.gqa.scoring_files import scoring_files
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.datasets.mini_gqa.vocabulary import SHAPES, WORLDS
from lavis_ext.datasets.questions.builder import QuestionBuilder, QuestionDataConfig
from lavis_ext.datasets.questions.files import QuestionFiles
from lavis_ext.datasets.questions.made_up import PublishedSplit
from lavis_ext.distributed.process_group import main_process_first
from lavis_ext.registry import registry

CONFIGS = Path(__file__).parent / "configs"
BALANCED = {
    "train": PublishedSplit(943_000, 72_140, 1_878),
    "val": PublishedSplit(132_062, 10_234, 1_878),
    "testdev": PublishedSplit(12_578, 398, 1_878),
}
"""GQA 1.2's balanced questions (Hudson and Manning, CVPR 2019)."""


@dataclass
class MiniGqaConfig:
    """Options of the mini-GQA that is drawn on first use."""

    root: str = option("data/mini_gqa", "Its folder.", may_change=True)
    images: int = option(4000, "Images; a tenth each for val and testdev.", at_least=10)
    seed: int = option(0, "Seed of the scenes and questions.", at_least=0)
    world: str = option(
        SHAPES.name,
        "shapes: easy at 128 pixels; fine: small objects that differ in fine parts, 256 pixels.",
        choices=tuple(WORLDS),
    )


@dataclass
class GqaFusionConfig(QuestionDataConfig):
    """The section ``datasets.gqa_fusion``."""

    type: str = option("balanced", "Default config that the section is merged over.")
    root: str = option("data/gqa", "Folder in GQA's layout.", may_change=True)
    subset: str = option("balanced", "GQA's question files.", choices=("balanced", "all"))
    choices: dict[str, str] = option(
        dict, "Choices files by split, for validity; by default root/choices/SPLIT_choices.json."
    )
    scene_graphs: dict[str, str] = option(
        dict, "Scene graphs by split; by default root/sceneGraphs/SPLIT_sceneGraphs.json."
    )
    mini_gqa: MiniGqaConfig | None = None


@registry.register_builder("gqa_fusion")
class GqaFusionBuilder(QuestionBuilder):
    """Data sets from a folder in GQA's layout."""

    Config = GqaFusionConfig
    OLD_KEYS = (
        OldKey(
            "datasets.gqa_fusion.vis_processor.*.name", values={"fusion_image": "stream_images"}
        ),
        OldKey("datasets.gqa_fusion.text_processor.*.name", values={"fusion_question": "question"}),
        OldKey(
            "datasets.gqa_fusion.vis_processor.*.grid_size",
            "datasets.gqa_fusion.vis_processor.*.sizes.grid",
        ),
        OldKey(
            "datasets.gqa_fusion.vis_processor.*.segmentation_size",
            "datasets.gqa_fusion.vis_processor.*.sizes.segmentation",
        ),
    )
    DATASET_CONFIG_DICT = {
        name: str(CONFIGS / f"{name}.yaml") for name in ("balanced", "all", "mini", "fine")
    }

    SPLITS = ("train", "val", "testdev")
    FILES_BY_SPLIT = ("questions", "choices", "scene_graphs")
    config: GqaFusionConfig

    def question_files(self, split: str) -> QuestionFiles:
        """Question files of the split: the given ones, else those in ``root``."""
        given = self.config.questions.get(split)
        root = Path(self.config.root)
        return gqa_files(Path(given) if given else find_questions(root, split, self.config.subset))

    def make(self) -> None:
        """Draw mini-GQA on first use."""
        with main_process_first():
            if mini := self._mini_gqa():
                make_mini_gqa(Path(mini.root), images=mini.images, seed=mini.seed, world=mini.world)

    def needs(self, splits: Sequence[str]) -> list[Need]:
        """Question files of the splits and the image folder, or mini-GQA's folder."""
        mini = self._mini_gqa()
        if mini is None or Path(mini.root).exists():
            return super().needs(splits)
        return [Need(f"{self.key()}.root", Located("drawn on first use", mini.root))]

    def published(self, split: str) -> PublishedSplit | None:
        """Numbers of GQA's balanced splits; None for other data in its layout."""
        own_files = self.config.questions or self.config.images or self._mini_gqa()
        known = self.config.subset == "balanced" and not own_files
        return BALANCED.get(split) if known else None

    def fetch(self) -> Callable[[], Any] | None:
        """A function that downloads GQA's questions and images, 21 GB; None for mini-GQA."""
        if self._mini_gqa():
            return None

        def fetch() -> None:
            # Imported here because `python -m` runs the module too.
            from lavis_ext.datasets.gqa.download import download_gqa

            download_gqa(Path(self.config.root))

        return fetch

    def _mini_gqa(self) -> MiniGqaConfig | None:
        """Options of mini-GQA if ``root`` is its folder."""
        mini = self.config.mini_gqa
        return mini if mini is not None and self.config.root == mini.root else None

    def make_dataset(self, split: str, **parts: Any) -> GqaFusionDataset:
        """Build a split's data set, with the files needed by GQA's metrics."""
        files = scoring_files(
            Path(self.config.root),
            split,
            self.config.choices,
            self.config.scene_graphs,
            self.key(),
        )
        return GqaFusionDataset(files=files, **parts)
