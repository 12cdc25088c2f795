"""Builders of VQAv2, OK-VQA, A-OKVQA, VizWiz, and of custom lists, tables and conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import is_folder
from lavis_ext.config.schema import option, section
from lavis_ext.datasets.questions.builder import QuestionBuilder, QuestionDataConfig
from lavis_ext.datasets.questions.files import QuestionFiles, first_existing
from lavis_ext.datasets.vqa.annotations import AnnotationPair
from lavis_ext.datasets.vqa.dataset import Benchmark, VqaDataset
from lavis_ext.datasets.vqa.lists import (
    RecordLists,
    aokvqa_rows,
    conversation_rows,
    lavis_rows,
    vizwiz_rows,
)
from lavis_ext.datasets.vqa.tables import Columns, TableFiles, find_tables
from lavis_ext.registry import registry

CONFIGS = Path(__file__).parent / "configs"
FOLDERS = (".", "questions", "annotations", "Questions", "Annotations")
"""Folders in ``root`` that are searched for files."""
COCO_PARTS = {"train": "train2014", "val": "val2014", "test": "test2015", "testdev": "test-dev2015"}


class VqaBuilder(QuestionBuilder):
    """Questions whose images are found by name in a folder and its subfolders.

    Class attributes:
        NAMES: templates of a split's file names below ``root``, with ``split``.
        BENCHMARK: benchmark whose rules score the answers.
    """

    DATASET_CONFIG_DICT = {"default": str(CONFIGS / "default.yaml")}
    NAMES: ClassVar[Sequence[str]] = ("{split}.json",)
    BENCHMARK: ClassVar[Benchmark] = Benchmark.OWN

    def make_dataset(self, split: str, **parts: Any) -> VqaDataset:
        """The data set of a split."""
        return VqaDataset(benchmark=self.BENCHMARK, **parts)

    def _found(self, option_name: str, split: str, names: Sequence[str]) -> Path:
        """A split's file: the given one, else the first existing one of ``names`` below root."""
        given = getattr(self.config, option_name).get(split)
        if given is not None:
            return Path(given)
        root = Path(self.config.root)
        if not is_folder(root):
            raise UserError(f"{self.key()}.root: there is no folder {root}.")
        candidates = [root / folder / name for folder in FOLDERS for name in names]
        if found := first_existing(candidates, f"{self.key()}.{option_name}.{split}"):
            return found
        raise UserError(
            f"{root}: no {option_name} of split '{split}'. Looked for {' and '.join(names)} in it "
            f"and in its folders questions and annotations; set the file with "
            f"{self.key()}.{option_name}.{split}."
        )

    def _list(self, split: str) -> Path:
        return self._found("questions", split, [each.format(split=split) for each in self.NAMES])


@dataclass
class CocoNamesConfig(QuestionDataConfig):
    """Options of data sets with numbered COCO images."""

    image_name: str = option(
        "COCO_{data_subtype}_{image_id:012d}",
        "Names of the images, without suffix, by image_id and data_subtype (such as train2014).",
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for an invalid template."""
        try:
            made = self.image_name.format(image_id=9, data_subtype="train2014")
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            made = ""
        if made in ("", self.image_name):
            raise UserError(
                f"{where}.image_name is '{shortened(self.image_name)}'; it must be a name with "
                "{image_id:012d} in it, and {data_subtype} if that is part of the names."
            )


@dataclass
class AnnotationPairConfig(CocoNamesConfig):
    """The sections ``datasets.vqav2`` and ``datasets.okvqa``."""

    annotations: dict[str, str] = option(
        dict,
        "Annotation files by split, instead of looking in root; test splits have none.",
        may_change=True,
    )


class AnnotationPairBuilder(VqaBuilder):
    """Pairs of files in VQA's format.

    Class attributes:
        VERSION: prefix of the files' names.
    """

    Config = AnnotationPairConfig
    FILES_BY_SPLIT = ("questions", "annotations")
    BENCHMARK = Benchmark.VQA
    VERSION: ClassVar[str] = ""
    config: AnnotationPairConfig

    def question_files(self, split: str) -> QuestionFiles:
        """Questions of the split and, if it has them, annotations."""
        part = COCO_PARTS.get(split, split)
        questions = self._found(
            "questions", split, [f"{self.VERSION}OpenEnded_mscoco_{part}_questions.json"]
        )
        files = [questions]
        if split in self.config.annotations or not part.startswith("test"):
            names = [f"{self.VERSION}mscoco_{part}_annotations.json"]
            files.append(self._found("annotations", split, names))
        return AnnotationPair(questions, tuple(files), self.config.image_name)


@dataclass
class VqaV2Config(AnnotationPairConfig):
    """The section ``datasets.vqav2``."""

    root: str = option("data/vqav2", "Folder of the data set.", may_change=True)


@registry.register_builder("vqav2")
class VqaV2Builder(AnnotationPairBuilder):
    """VQAv2, about COCO's images of 2014 and, for test and testdev, 2015."""

    Config = VqaV2Config
    SPLITS = ("train", "val", "test", "testdev")
    VERSION = "v2_"


@dataclass
class OkVqaConfig(AnnotationPairConfig):
    """The section ``datasets.okvqa``."""

    root: str = option("data/okvqa", "Folder of the data set.", may_change=True)


@registry.register_builder("okvqa")
class OkVqaBuilder(AnnotationPairBuilder):
    """OK-VQA, about COCO's images of 2014."""

    Config = OkVqaConfig
    SPLITS = ("train", "val")


@dataclass
class AOkVqaConfig(CocoNamesConfig):
    """The section ``datasets.aokvqa``."""

    root: str = option("data/aokvqa", "Folder of the data set.", may_change=True)
    image_name: str = option("{image_id:012d}", "Names of the images, without suffix, by image_id.")


@registry.register_builder("aokvqa")
class AOkVqaBuilder(VqaBuilder):
    """A-OKVQA's direct answers, about COCO's images of 2017."""

    Config = AOkVqaConfig
    BENCHMARK = Benchmark.AOKVQA
    NAMES = ("aokvqa_v1p0_{split}.json", "{split}.json")
    config: AOkVqaConfig

    def question_files(self, split: str) -> QuestionFiles:
        """List of the split."""
        path = self._list(split)
        expected = "A-OKVQA's list of records"
        return RecordLists(path, (path,), aokvqa_rows, expected, self.config.image_name)


@dataclass
class VizWizConfig(QuestionDataConfig):
    """The section ``datasets.vizwiz``."""

    root: str = option("data/vizwiz", "Folder of the data set.", may_change=True)


@registry.register_builder("vizwiz")
class VizWizBuilder(VqaBuilder):
    """VizWiz: one question per image, with ten answers."""

    Config = VizWizConfig
    BENCHMARK = Benchmark.VIZWIZ

    def question_files(self, split: str) -> QuestionFiles:
        """List of the split."""
        path = self._list(split)
        return RecordLists(path, (path,), vizwiz_rows, "VizWiz's list of records")


@dataclass
class QuestionListConfig(QuestionDataConfig):
    """The sections ``datasets.question_list`` and ``datasets.conversations``."""


@registry.register_builder("question_list")
class QuestionListBuilder(VqaBuilder):
    """LAVIS's own lists: ``question_id``, ``question``, ``image`` (a path), ``answer`` (a list)."""

    Config = QuestionListConfig
    NAMES = ("{split}.json", "vqa_{split}.json")

    def question_files(self, split: str) -> QuestionFiles:
        """List of the split."""
        path = self._list(split)
        return RecordLists(path, (path,), lavis_rows, "LAVIS's list of records")


@registry.register_builder("conversations")
class ConversationsBuilder(VqaBuilder):
    """Conversations about images in LLaVA's format, each turn a question."""

    Config = QuestionListConfig

    def question_files(self, split: str) -> QuestionFiles:
        """List of the split."""
        path = self._list(split)
        return RecordLists(path, (path,), conversation_rows, "LLaVA's list of conversations")


@dataclass
class QuestionTableConfig(QuestionDataConfig):
    """The section ``datasets.question_table``."""

    columns: Columns = section(Columns)


@registry.register_builder("question_table")
class QuestionTableBuilder(VqaBuilder):
    """A CSV or Parquet table, or a folder saved by the hub's ``datasets`` library."""

    Config = QuestionTableConfig
    config: QuestionTableConfig

    def question_files(self, split: str) -> QuestionFiles:
        """Tables of the split."""
        named = Path(self.config.questions.get(split, self.config.root))
        return TableFiles(named, find_tables(named, split), self.config.columns)
