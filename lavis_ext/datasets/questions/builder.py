"""Base class of question data builders: from question files and an image folder to data sets."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lavis_ext.checkpoints.needs import Need, data_needed
from lavis_ext.common.addresses import is_address
from lavis_ext.common.errors import UserError, counted, listed, nearest
from lavis_ext.common.files import is_file, is_folder, user_cache
from lavis_ext.common.logs import silenced
from lavis_ext.config.schema import option, section
from lavis_ext.config.typed import schema_of, shown, typed
from lavis_ext.datasets.base import DatasetBuilder
from lavis_ext.datasets.image_files import Cache, is_pattern
from lavis_ext.datasets.pictures import ImageFolder, NoImages
from lavis_ext.datasets.questions.dataset import QuestionDataset
from lavis_ext.datasets.questions.files import QuestionFiles
from lavis_ext.datasets.questions.files import log as files_log
from lavis_ext.datasets.questions.made_up import MadeUpQuestions, PublishedSplit
from lavis_ext.datasets.questions.mismatched import MismatchedQuestions
from lavis_ext.datasets.questions.statements import MismatchedStatements, Statements
from lavis_ext.datasets.questions.store import open_store
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.samples import SampleSize
from lavis_ext.distributed.process_group import gather
from lavis_ext.registry import registry

log = logging.getLogger(__name__)


@dataclass
class MismatchedConfig:
    """Options of mismatched questions."""

    per_question: int = option(1, "Mismatched questions per question.", at_least=1)
    hard: bool = option(False, "Draw them from questions of the same form about other images.")
    text: str = option(
        "question",
        "What is matched with images: the questions, or statements that answer them. Mismatched "
        "statements are the same question's with another answer, then other images'.",
        choices=("question", "statement"),
    )


@dataclass
class ProcessorPair:
    """Processors of the training split and of the others, each with a name and options."""

    train: Any = option(None, "The training split's processor.")
    eval: Any = option(None, "The other splits' processor.")

    def check_together(self, where: str) -> None:
        """Convert each processor's section to its typed config."""
        for name in ("train", "eval"):
            section = getattr(self, name)
            if not isinstance(section, dict) or "name" not in section:
                raise UserError(
                    f"{where}.{name} is {shown(section)}; it must be a mapping with `name`, a "
                    "registered processor."
                )
            schema = schema_of("processor", section["name"], f"{where}.{name}.name")
            setattr(self, name, typed(schema, section, f"{where}.{name}"))


@dataclass
class ImageCacheConfig:
    """The section ``image_cache``: local copies of images read from addresses."""

    folder: str | None = option(
        None, "Folder; by default lavis_ext/images in XDG_CACHE_HOME or ~/.cache."
    )
    gigabytes: float = option(
        20.0, "Maximum size; the least recently used images leave. 0 for no copies.", at_least=0
    )

    def cache(self) -> Cache | None:
        """The cache; None for none."""
        folder = Path(self.folder).expanduser() if self.folder else user_cache("images")
        return Cache(folder, int(self.gigabytes * 1e9)) if self.gigabytes else None


@dataclass
class QuestionDataConfig:
    """Common options of data sets with questions about images."""

    type: str = option("default", "Default config that the section is merged over.")
    root: str = option("data", "Folder of the data set.", may_change=True)
    questions: dict[str, str] = option(
        dict,
        "Question files by split; by default those found in root.",
        may_change=True,
    )
    question_store: str | None = option(
        None,
        "Folder of converted copies of large question files; by default beside them.",
        may_change=True,
    )
    images: str | None = option(
        None,
        "Image folder, zip or tar archive, Parquet table, pattern of such files, or address of any "
        "of them (s3://, https://, ...); by default root/images or root/images.zip.",
        may_change=True,
    )
    image_cache: ImageCacheConfig = section(ImageCacheConfig, may_change=True)
    missing_images_limit: float = option(
        0.0,
        "Allowed share of missing images, whose questions are skipped.",
        at_least=0,
        at_most=1,
    )
    vis_processor: ProcessorPair = field(default_factory=ProcessorPair)
    text_processor: ProcessorPair = field(default_factory=ProcessorPair)
    mismatched: MismatchedConfig = field(default_factory=MismatchedConfig)


class QuestionBuilder(DatasetBuilder):
    """Builds data sets of questions about images. A format implements ``question_files``.

    Class attributes:
        SPLITS: splits of the format.
        FILES_BY_SPLIT: options that name files by split.
    """

    SPLITS: ClassVar[Sequence[str]] = ("train", "val", "test")
    FILES_BY_SPLIT: ClassVar[Sequence[str]] = ("questions",)
    config: QuestionDataConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._tables: dict[str, QuestionTable] = {}
        self._made_up = False

    @abstractmethod
    def question_files(self, split: str) -> QuestionFiles:
        """Question files of a split. Raises UserError if there are none."""

    def build_datasets(  # type: ignore[override]  # names the options it knows
        self,
        sizes: Mapping[str, SampleSize | int | float | None] | None = None,
        *,
        seed: int = 0,
        with_mismatched: bool = True,
        with_statements: bool = False,
        image_sizes: Mapping[str, int] | None = None,
    ) -> dict[str, QuestionDataset]:
        """Build data sets by split.

        Args:
            sizes: splits to build, each with its sample size (a number means
                ``SampleSize(number)``) or None for all of it; by default all of ``SPLITS``.
            seed: seed of the samples and the mismatched questions.
            with_mismatched: whether to draw mismatched questions.
            with_statements: whether batches have answers as sentences.
            image_sizes: side of each stream's image in pixels; without it, processors need their
                own ``sizes``.
        """
        processors = {mode: self._image_processor(mode, image_sizes) for mode in ("train", "eval")}
        sizes = dict.fromkeys(self.SPLITS) if sizes is None else sizes
        self._check_named_splits(sizes)
        self.make()
        wholes = {split: self.read_split(split) for split in sizes}
        if not self._made_up:
            self._check_same_files(wholes)
        tables = {split: wholes[split].sample(size, seed) for split, size in sizes.items()}
        images = self._image_folder()
        return {
            split: self._build_split(
                split,
                table,
                images,
                processors,
                seed,
                with_mismatched=with_mismatched,
                statements=with_statements,
            )
            for split, table in tables.items()
        }

    def read_split(self, split: str) -> QuestionTable:
        """All questions of a split, with or without images; the files are read once."""
        if split not in self._tables:
            store = self.config.question_store
            files = self._made_up_files(split) if self._made_up else self.question_files(split)
            self._tables[split] = QuestionTable.of_store(
                open_store(files, Path(store) if store else None)
            )
        return self._tables[split]

    def make(self) -> None:
        """Hook for generated data, called before anything is read."""

    def published(self, split: str) -> PublishedSplit | None:
        """Published numbers of a split; None if they aren't known."""
        return None

    def make_up(self, splits: Sequence[str]) -> bool:
        """Build made-up questions about black images from now on; False for unknown numbers."""
        self._made_up = all(self.published(split) is not None for split in splits)
        return self._made_up

    def _made_up_files(self, split: str) -> QuestionFiles:
        numbers = self.published(split)
        if numbers is None:
            raise UserError(f"{self.key()}: the number of questions of '{split}' isn't known.")
        return MadeUpQuestions(Path(self.config.root), (), numbers)

    def fetch(self) -> Callable[[], Any] | None:
        """A function that downloads the data to ``root``; None if that isn't possible."""
        return None

    def needs(self, splits: Sequence[str]) -> list[Need]:
        """Question files of the splits, and the image folder."""
        questions = [
            data_needed(
                f"{self.key()}.questions.{split}", partial(self._found_file, split), self.fetch()
            )
            for split in splits
        ]
        if self.config.images is None and not is_folder(Path(self.config.root)):
            return questions  # one reason is enough
        images = data_needed(f"{self.key()}.images", self._image_place, self.fetch())
        return [*questions, images]

    def _found_file(self, split: str) -> Path:
        with silenced(files_log):  # reading the files logs which were chosen
            named = self.question_files(split).named
        if not is_file(named) and not is_folder(named):
            raise UserError(f"{self.key()}.questions.{split}: there is no file {named}.")
        return named

    def _check_named_splits(self, splits: Iterable[str]) -> None:
        """Raise UserError for unknown splits, which would silently use ``root``'s files instead."""
        known = {*self.SPLITS, *splits}
        for key in self.FILES_BY_SPLIT:
            for split in getattr(self.config, key):
                if split not in known:
                    hint = nearest(split, known) or f" There are: {', '.join(sorted(known))}."
                    raise UserError(
                        f"{self.key()}.{key}.{split}: there is no split '{split}'.{hint}"
                    )

    def _check_same_files(self, tables: Mapping[str, QuestionTable]) -> None:
        """Raise UserError if processes have different questions, as when files change."""
        own = {split: table.store.contents for split, table in tables.items() if table.store}
        for (one, content), (other, same) in combinations(own.items(), 2):
            if content == same:
                log.warning(
                    "Splits %s and %s have the same questions, so they aren't independent. Set "
                    "different files in %s.questions.",
                    one,
                    other,
                    self.key(),
                )
        everyone = gather([own])
        for split, contents in own.items():
            if any(other[split] != contents for other in everyone):
                raise UserError(
                    f"The question files of split '{split}' differ between the processes of this "
                    "run: they changed in the meantime, or machines have different copies. Start "
                    "again with the same files everywhere."
                )

    def _image_folder(self) -> ImageFolder:
        if self._made_up:
            return NoImages(Path(self.config.images or Path(self.config.root) / "images"))
        cache = self.config.image_cache.cache()
        return ImageFolder(self._image_place(), recursive=True, cache=cache)

    def _image_place(self) -> Path | str:
        """Path or address of the images. Raises UserError for a missing path."""
        place = self.config.images
        if place and is_address(place):
            return place
        folder = Path(place or Path(self.config.root) / "images").expanduser()
        zipped = folder.with_suffix(".zip")
        if place is None and not is_folder(folder) and is_file(zipped):
            return zipped
        if not is_pattern(folder) and not is_folder(folder) and not is_file(folder):
            raise UserError(
                f"{folder}: there is no such image folder. Put the images there, or set another "
                f"folder with {self.key()}.images."
            )
        return folder

    def _build_split(
        self,
        split: str,
        table: QuestionTable,
        images: ImageFolder,
        processors: Mapping[str, Callable[..., Any]],
        seed: int,
        *,
        with_mismatched: bool,
        statements: bool,
    ) -> QuestionDataset:
        if not self._made_up:
            table = self._with_images(table, images, split)
        mode = "train" if split == "train" else "eval"
        mismatched = None
        if with_mismatched:
            chosen = self.config.mismatched
            stating = chosen.text == "statement"
            kind = MismatchedStatements if stating else MismatchedQuestions
            mismatched = kind(table, count=chosen.per_question, hard=chosen.hard, seed=seed)
        dataset = self.make_dataset(
            split,
            table=table,
            images=images,
            processor=processors[mode],
            text_processor=_processor(getattr(self.config.text_processor, mode)),
            mismatched=mismatched,
            statements=Statements(table) if statements else None,
        )
        dataset.black = self._made_up
        return dataset

    def make_dataset(self, split: str, **parts: Any) -> QuestionDataset:
        """Build a split's data set; ``parts`` are the arguments of :class:`QuestionDataset`."""
        return QuestionDataset(**parts)

    def _image_processor(
        self, mode: str, image_sizes: Mapping[str, int] | None
    ) -> Callable[..., Any]:
        """Build a mode's processor for the model's image sizes. Raises UserError for others."""
        config: Any = getattr(self.config.vis_processor, mode)
        if not hasattr(config, "sizes"):
            return _processor(config)
        key = f"{self.key()}.vis_processor.{mode}.sizes"
        if image_sizes is None:
            if not config.sizes:
                raise UserError(
                    f"{key}: set the side of each stream's image in pixels; there is no model to "
                    "derive them from."
                )
            return _processor(config)
        for stream, side in config.sizes.items():
            if stream not in image_sizes:
                raise UserError(
                    f"{key}.{stream}: the model has no such stream."
                    f"{nearest(stream, image_sizes)} There are: {', '.join(image_sizes)}."
                )
            if side != image_sizes[stream]:
                # Otherwise a wrong size would only fail in the first batch.
                raise UserError(
                    f"{key}.{stream} is {side}, but the model's encoder is built for "
                    f"{image_sizes[stream]} pixels; remove the key, or change both."
                )
        return _processor(replace(config, sizes=dict(image_sizes)))

    def _with_images(self, table: QuestionTable, images: ImageFolder, split: str) -> QuestionTable:
        used = table.values("image_id")
        missing = images.missing(used)
        if not missing:
            return table
        count = len(used)
        verb = "is" if len(missing) == 1 else "are"
        found = (
            f"{images.folder}: {len(missing):,} of the {counted(count, 'image')} that split "
            f"'{split}' uses {verb} missing ({listed(missing)})."
        )
        if shut := sum(name in images for name in missing):
            exist = "exists but is" if shut == 1 else "exist but are"
            found += f" {shut:,} of them {exist} empty, unreadable or broken links."
        if len(missing) == count:
            raise UserError(f"{found} Set their folder with {self.key()}.images.")
        if len(missing) > self.config.missing_images_limit * count:
            raise UserError(
                f"{found} Download them, or allow a share of missing images with "
                f"{self.key()}.missing_images_limit."
            )
        codes, names = table.encoded("image_id")
        gone = set(missing)
        kept = np.flatnonzero(np.array([name not in gone for name in names])[codes])
        left_out = len(table) - len(kept)
        verb = "is" if left_out == 1 else "are"
        log.warning("%s %s %s left out.", found, counted(left_out, "question"), verb)
        return table.take(kept)


def _processor(config: Any) -> Callable[..., Any]:
    processor: Callable[..., Any] = registry.get_processor_class(config.name)(config)
    return processor
