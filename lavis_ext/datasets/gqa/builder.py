"""The builder ``gqa_fusion``: from a folder in GQA's layout to data sets, one for each split."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from lavis_ext.common.errors import UserError, listed, nearest
from lavis_ext.common.files import is_folder
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.schema import option
from lavis_ext.config.typed import schema_of, shown, typed
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.gqa.mismatched import MismatchedQuestions
from lavis_ext.datasets.gqa.question_table import QuestionTable
from lavis_ext.datasets.gqa.questions import find_questions, read_questions
from lavis_ext.datasets.gqa.scoring_files import scoring_files
from lavis_ext.datasets.mini_gqa import make_mini_gqa
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.distributed.process_group import gather, main_process_first
from lavis_ext.registry import BaseDatasetBuilder, registry

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
SPLITS = ("train", "val", "testdev")


@dataclass
class MismatchedConfig:
    """How mismatched questions are drawn."""

    per_question: int = option(1, "Mismatched questions for each question.", at_least=1)
    hard: bool = option(False, "Draw them from the same form of question about other images.")


@dataclass
class MiniGqaConfig:
    """The mini-GQA that is made on first use."""

    root: str = option("data/mini_gqa", "Where it is made.", may_change=True)
    images: int = option(4000, "Images, of which a tenth each is val and testdev.", at_least=10)
    seed: int = option(0, "Seed of the scenes and questions.", at_least=0)


@dataclass
class ProcessorPair:
    """Processors for the training split and for the others, each with a name and its options."""

    train: Any = option(None, "The training split's processor.")
    eval: Any = option(None, "The other splits' processor.")

    def check_together(self, where: str) -> None:
        """Give each processor's section its type."""
        for name in ("train", "eval"):
            section = getattr(self, name)
            if not isinstance(section, dict) or "name" not in section:
                raise UserError(
                    f"{where}.{name} is {shown(section)}; it must be a mapping with `name`, a "
                    "processor of the registry."
                )
            schema = schema_of("processor", section["name"], f"{where}.{name}.name")
            setattr(self, name, typed(schema, section, f"{where}.{name}"))


@dataclass
class GqaFusionConfig:
    """The section ``datasets.gqa_fusion``."""

    type: str = option("balanced", "Which default config the section starts from.")
    root: str = option("data/gqa", "Folder in GQA's layout.", may_change=True)
    subset: str = option("balanced", "GQA's question files.", choices=("balanced", "all"))
    questions: dict[str, str] = option(
        dict, "Question files by split, instead of looking in root.", may_change=True
    )
    question_store: str | None = option(
        None,
        "Folder for large question files as converted on first use; by default beside them.",
        may_change=True,
    )
    choices: dict[str, str] = option(
        dict, "Choices files by split, for validity; by default root/choices/SPLIT_choices.json."
    )
    scene_graphs: dict[str, str] = option(
        dict, "Scene graphs by split; by default root/sceneGraphs/SPLIT_sceneGraphs.json."
    )
    images: str | None = option(None, "Image folder; by default root/images.", may_change=True)
    missing_images_limit: float = option(
        0.0,
        "Share of images that may be missing; their questions are left out.",
        at_least=0,
        at_most=1,
    )
    vis_processor: ProcessorPair = field(default_factory=ProcessorPair)
    text_processor: ProcessorPair = field(default_factory=ProcessorPair)
    mismatched: MismatchedConfig = field(default_factory=MismatchedConfig)
    mini_gqa: MiniGqaConfig | None = None


@registry.register_builder("gqa_fusion")
class GqaFusionBuilder(BaseDatasetBuilder):
    """Builds the data sets that a run asks for.

    Args:
        config: the section ``datasets.gqa_fusion``: typed, or as a mapping; None for the defaults.
    """

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
    DATASET_CONFIG_DICT: Mapping[str, str] = {
        name: str(CONFIGS / f"{name}.yaml") for name in ("balanced", "all", "mini")
    }

    def __init__(self, config: GqaFusionConfig | DictConfig | None = None) -> None:
        if not isinstance(config, GqaFusionConfig):
            config = typed(GqaFusionConfig, self._standing_alone(config), "datasets.gqa_fusion")
        self.config: GqaFusionConfig = config
        self._tables: dict[str, QuestionTable] = {}

    @classmethod
    def _standing_alone(cls, given: DictConfig | None) -> DictConfig:
        """``given`` over the defaults of its type."""
        given = OmegaConf.create(given or {})
        defaults = OmegaConf.load(cls.default_config_path(given.get("type") or "balanced"))
        section: DictConfig = OmegaConf.merge(
            defaults, {"datasets": {"gqa_fusion": given}}
        ).datasets.gqa_fusion
        return section

    @classmethod
    def default_config_path(cls, type: str | None = None) -> str:
        """The default config of a type, by default balanced. Raises UserError naming the types."""
        type = type or "balanced"
        if type not in cls.DATASET_CONFIG_DICT:
            raise UserError(
                f"datasets.gqa_fusion.type is '{type}'; there are: "
                f"{', '.join(cls.DATASET_CONFIG_DICT)}.{nearest(type, cls.DATASET_CONFIG_DICT)}"
            )
        return cls.DATASET_CONFIG_DICT[type]

    def build_datasets(
        self,
        sizes: Mapping[str, int | None] | None = None,
        *,
        seed: int = 0,
        with_mismatched: bool = True,
        image_sizes: Mapping[str, int] | None = None,
    ) -> dict[str, GqaFusionDataset]:
        """Data sets by split.

        Args:
            sizes: the splits to build, each with the size of its seeded sample or None for all of
                it; by default all of train, val and testdev.
            seed: seed of the samples and of the mismatched questions.
            with_mismatched: whether samples hold mismatched questions.
            image_sizes: side in pixels of the image of each of the model's streams; without a
                model, processors need ``sizes`` of their own.
        """
        processors = {mode: self._image_processor(mode, image_sizes) for mode in ("train", "eval")}
        sizes = dict.fromkeys(SPLITS) if sizes is None else sizes
        self._refuse_unread_files(sizes)
        with main_process_first():
            self._make_mini_gqa()
        wholes = {split: self.read_split(split) for split in sizes}
        self._refuse_differing(wholes)
        tables = {split: wholes[split].sample(size, seed) for split, size in sizes.items()}
        images = self._image_folder()
        return {
            split: self._build_split(split, table, images, processors, seed, with_mismatched)
            for split, table in tables.items()
        }

    def read_split(self, split: str) -> QuestionTable:
        """All questions of a split, images or not; the files are read once."""
        if split not in self._tables:
            given = self.config.questions.get(split)
            root = Path(self.config.root)
            source = Path(given) if given else find_questions(root, split, self.config.subset)
            store = self.config.question_store
            self._tables[split] = read_questions(source, Path(store) if store else None)
        return self._tables[split]

    def _refuse_unread_files(self, splits: Iterable[str]) -> None:
        """A misspelt split would be looked for in ``root``, and may be found there."""
        known = {*SPLITS, *splits}
        for key in ("questions", "choices", "scene_graphs"):
            for split in getattr(self.config, key):
                if split not in known:
                    hint = nearest(split, known) or f" There are: {', '.join(sorted(known))}."
                    raise UserError(
                        f"datasets.gqa_fusion.{key}.{split}: there is no split '{split}'.{hint}"
                    )

    def _refuse_differing(self, tables: Mapping[str, QuestionTable]) -> None:
        """Files that change while the processes start give each of them other questions."""
        own = {split: table.store.contents for split, table in tables.items() if table.store}
        everyone = gather([own])
        for split, contents in own.items():
            if any(other[split] != contents for other in everyone):
                raise UserError(
                    f"The question files of split '{split}' differ between the processes of this "
                    "run: they changed meanwhile, or machines have other copies. Start it again "
                    "with the same files everywhere."
                )

    def _image_folder(self) -> ImageFolder:
        folder = Path(self.config.images or Path(self.config.root) / "images")
        if not is_folder(folder):
            raise UserError(
                f"{folder}: there is no such image folder. Put the images there, or name another "
                "folder with datasets.gqa_fusion.images."
            )
        return ImageFolder(folder)

    def _build_split(
        self,
        split: str,
        table: QuestionTable,
        images: ImageFolder,
        processors: Mapping[str, Callable[..., Any]],
        seed: int,
        with_mismatched: bool,
    ) -> GqaFusionDataset:
        table = self._with_images(table, images, split)
        mode = "train" if split == "train" else "eval"
        mismatched = None
        if with_mismatched:
            chosen = self.config.mismatched
            mismatched = MismatchedQuestions(
                table, count=chosen.per_question, hard=chosen.hard, seed=seed
            )
        return GqaFusionDataset(
            table,
            images,
            files=scoring_files(
                Path(self.config.root),
                split,
                self.config.choices,
                self.config.scene_graphs,
                "datasets.gqa_fusion",
            ),
            processor=processors[mode],
            text_processor=_processor(getattr(self.config.text_processor, mode)),
            mismatched=mismatched,
        )

    def _image_processor(
        self, mode: str, image_sizes: Mapping[str, int] | None
    ) -> Callable[..., Any]:
        """The processor of a mode, its sizes the model's. Raises UserError for other ones."""
        config: Any = getattr(self.config.vis_processor, mode)
        if not hasattr(config, "sizes"):
            return _processor(config)
        key = f"datasets.gqa_fusion.vis_processor.{mode}.sizes"
        if image_sizes is None:
            if not config.sizes:
                raise UserError(
                    f"{key}: give the side in pixels of each stream's image; there is no model to "
                    "take them from."
                )
            return _processor(config)
        for stream, side in config.sizes.items():
            if stream not in image_sizes:
                raise UserError(
                    f"{key}.{stream}: the model has no such stream."
                    f"{nearest(stream, image_sizes)} There are: {', '.join(image_sizes)}."
                )
            if side != image_sizes[stream]:
                # Images of another size would only be noticed in the first batch.
                raise UserError(
                    f"{key}.{stream} is {side}, but the model's encoder is built for "
                    f"{image_sizes[stream]} pixels; leave the key out, or change both."
                )
        return _processor(replace(config, sizes=dict(image_sizes)))

    def _with_images(self, table: QuestionTable, images: ImageFolder, split: str) -> QuestionTable:
        used = table.values("image_id")
        missing = images.missing(used)
        if not missing:
            return table
        count = len(used)
        found = (
            f"{images.folder}: {len(missing)} of the {count} images that split '{split}' uses are "
            f"missing ({listed(missing)})."
        )
        if len(missing) == count:
            raise UserError(f"{found} Name their folder with datasets.gqa_fusion.images.")
        if len(missing) > self.config.missing_images_limit * count:
            raise UserError(
                f"{found} Fetch them, or let a share of them be missing with "
                "datasets.gqa_fusion.missing_images_limit."
            )
        codes, names = table.encoded("image_id")
        gone = set(missing)
        kept = np.flatnonzero(np.array([name not in gone for name in names])[codes])
        log.warning("%s %d questions are left out.", found, len(table) - len(kept))
        return table.take(kept)

    def _make_mini_gqa(self) -> None:
        mini = self.config.mini_gqa
        if mini is not None and self.config.root == mini.root:
            make_mini_gqa(Path(mini.root), images=mini.images, seed=mini.seed)


def _processor(config: Any) -> Callable[..., Any]:
    processor: Callable[..., Any] = registry.get_processor_class(config.name)(config)
    return processor
