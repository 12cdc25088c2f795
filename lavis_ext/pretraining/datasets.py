"""Samples that the parts of the miniature are trained on, drawn anew for each epoch.

Each data set draws from a generator seeded by run seed, epoch and record, so neither the batch size
nor the number of processes changes a sample.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lavis_ext.config.schema import option
from lavis_ext.datasets.batches import BatchRows
from lavis_ext.datasets.gqa import DataFault
from lavis_ext.datasets.grounded_questions import GroundedQuestion
from lavis_ext.datasets.images import ImageFolder
from lavis_ext.datasets.mini_gqa.vocabulary import KEY_OF, OBJECT_VALUES, SCENE_VALUES
from lavis_ext.datasets.scene_graphs import GraphObject, SceneGraph, read_object_masks
from lavis_ext.encoders.sam_prompt_encoder import BOTTOM_RIGHT, NONE, POINT, TOP_LEFT
from lavis_ext.errors import UserError
from lavis_ext.pretraining.descriptions import caption, value_of
from lavis_ext.pretraining.matching_pairs import matching_pair, mention_pair
from lavis_ext.processors.image import FusionImageConfig, FusionImageProcessor


@dataclass
class PretrainingDataConfig:
    """A mini-GQA of its own, so that no part of the miniature has seen what it is tested on."""

    type: str = option("mini", "Which default config the section starts from.")
    root: str = option("data/mini_gqa_pretraining", "Where the mini-GQA is made.")
    images: int = option(12000, "Its images; a tenth each is val and testdev.", at_least=10)
    seed: int = option(1000, "Seed of its scenes; data sets of other seeds share none.", at_least=0)
    image_size: int = option(128, "Side in pixels of the images.", at_least=1)


@dataclass(frozen=True)
class Split:
    """One split of mini-GQA. ``questions`` by image id."""

    folder: Path
    graphs: dict[str, SceneGraph]
    questions: dict[str, list[GroundedQuestion]]


class PretrainingDataset(Dataset[Any], ABC):
    """Samples of one split, each drawn from a record of ``records``.

    Args:
        config: the builder's options.
        split: the data.
        size: how many records, a seeded sample of them; None for all.
        seed: the run's seed.
    """

    Config: ClassVar[type[PretrainingDataConfig]] = PretrainingDataConfig

    def __init__(self, config: Any, split: Split, size: int | None, seed: int) -> None:
        self.config = config
        self.split = split
        self.seed = seed
        self.images = ImageFolder(split.folder / "images")
        sides = FusionImageConfig(grid_size=config.image_size, segmentation_size=config.image_size)
        self._process = FusionImageProcessor(sides)
        self.records = self._records()
        if size is not None and size < len(self.records):
            chosen = np.random.default_rng(seed).choice(len(self.records), size, replace=False)
            self.records = [self.records[row] for row in sorted(chosen)]

    def __len__(self) -> int:
        return len(self.records)

    def image_codes(self) -> npt.NDArray[np.int64]:
        """Integers [rows], all different: nothing is shared between samples."""
        return np.arange(len(self))

    def __getitems__(self, batch: BatchRows) -> Any:
        """Called by torch's DataLoader with what the batch sampler yields."""
        try:
            rows = [int(row) for row in batch.rows]
            samples = [self.draw(row, self._generator(row, batch.epoch)) for row in rows]
            return {**self.collate(samples), "global_size": batch.global_size}
        except UserError as error:
            return DataFault(str(error))

    def collater(self, batch: Any) -> Any:
        """The loader's collate function: batches come out of ``__getitems__`` collated."""
        return batch

    @abstractmethod
    def draw(self, row: int, rng: random.Random) -> Any:
        """One sample of the record in ``row``."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """A batch of samples."""

    def _records(self) -> list[Any]:
        return sorted(self.split.graphs)

    def _generator(self, row: int, epoch: int) -> random.Random:
        return random.Random(f"{self.seed}/{epoch}/{row}")

    def _image(self, image_id: str) -> Tensor:
        return self._process(self.images.read(image_id))["grid_image"]

    def _masks(self, image_id: str) -> npt.NDArray[np.bool_]:
        """Masks [objects, H, W] of an image's objects."""
        count = len(self.split.graphs[image_id].objects)
        return read_object_masks(self.split.folder / "masks" / f"{image_id}.png", count)


LABELS: dict[str, tuple[str, ...]] = {
    **{key: OBJECT_VALUES[key] for key in ("name", "color", "pattern", "size")},
    **SCENE_VALUES,
}
"""What a patch is labelled with, and the values there are."""
NO_LABEL = -100


class DescriptionSamples(TypedDict):
    """A batch of B images with C captions and 2K texts each."""

    grid_image: Tensor
    """uint8 [B, 3, S, S]."""
    patch_labels: Tensor
    """int64 [B, N, len(LABELS)], places in the values of each of LABELS, or NO_LABEL."""
    captions: list[str]
    """[B * C], those of image b from b * C on."""
    patch_mask: Tensor
    """bool [B * C, N], the patches that a caption describes."""
    texts: list[str]
    """[B * 2K]: for each image K texts that match it, then K that don't."""
    text_patch_mask: Tensor
    """bool [B * 2K, N], the patches that a text is matched with."""
    global_size: int
    """Images in the batch over all processes."""


@dataclass
class DescriptionDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_descriptions``."""

    patch_size: int = option(16, "Side in pixels of a patch.", at_least=1)
    captions: int = option(3, "Captions of an image.", at_least=0)
    pairs: int = option(3, "Matching texts of an image, and as many mismatched ones.", at_least=0)
    close: float = option(
        0.5,
        "Share of the pairs that are about one object and matched with some patches alone.",
        at_least=0,
        at_most=1,
    )
    close_patches: int | None = option(
        None,
        "Most patches of such a pair; by default most_patches. The number is drawn so that twice "
        "as many is half as likely.",
        at_least=1,
    )
    fewest_patches: int = option(6, "Patches that a caption is made from, at least.", at_least=1)
    most_patches: int = option(20, "Patches that a caption is made from, at most.", at_least=1)
    unguided: float = option(
        0.15, "Share of captions whose patches are drawn at random.", at_least=0, at_most=1
    )
    whole: float = option(
        0.15, "Share of captions that are made from all patches.", at_least=0, at_most=1
    )

    def check_together(self, where: str) -> None:
        """The patches must be there."""
        count = (self.image_size // self.patch_size) ** 2
        if not self.fewest_patches <= self.most_patches <= count:
            raise UserError(
                f"{where}: fewest_patches {self.fewest_patches} and most_patches "
                f"{self.most_patches} must be in this order, and at most the {count} patches."
            )


class DescriptionDataset(PretrainingDataset):
    """Images with captions of some of their patches, texts that match or don't, and labels.

    PNP-VQA makes captions from patches that it draws; a captioner that is to tell what is in them
    has to be trained that way, when it is as small as this one.
    """

    Config = DescriptionDataConfig
    BACKGROUND = 0.005
    """Weight of a patch without the object against one full of it."""
    LABELLED = 0.25
    """Share of a patch that an object must cover to be its label."""
    SHARPNESS = 3
    """Power that makes the object whose pixels are most in the patches the one described."""

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """A row's ``image``, ``captions`` and ``texts``, with the patches that these are about."""
        image_id = self.records[row]
        graph = self.split.graphs[image_id]
        coverage = self._coverage(image_id)
        captions, patch_masks = [], []
        for _ in range(self.config.captions):
            chosen = self._patches(coverage, rng)
            seen = coverage[:, chosen].sum(axis=1) / coverage.sum(axis=1)
            weights = seen**self.SHARPNESS + 1e-6
            item = rng.choices(graph.objects, weights.tolist())[0]
            captions.append(caption(item, graph, rng))
            patch_masks.append(chosen)
        matched, mismatched, text_masks = [], [], []
        for _ in range(self.config.pairs):
            true, false, seen = self._pair(image_id, graph, coverage, rng)
            matched.append(true)
            mismatched.append(false)
            text_masks.append(seen)
        return {
            "image": self._image(image_id),
            "patch_labels": self._labels(graph, coverage),
            "captions": captions,
            "patch_masks": np.array(patch_masks, dtype=bool).reshape(-1, coverage.shape[1]),
            "texts": matched + mismatched,
            "text_patch_masks": np.array(text_masks * 2, dtype=bool).reshape(-1, coverage.shape[1]),
        }

    def _labels(
        self, graph: SceneGraph, coverage: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        """Labels [N, len(LABELS)]: of the object that covers most of a patch, and of the scene."""
        scene = {"place": graph.place, "weather": graph.weather}
        of_objects = np.array(
            [
                [
                    values.index(scene[key] if key in scene else value_of(item, key))
                    for key, values in LABELS.items()
                ]
                for item in graph.objects
            ]
        )
        labels: npt.NDArray[np.int64] = of_objects[coverage.argmax(axis=0)]
        bare = coverage.max(axis=0) < self.LABELLED
        labels[np.ix_(bare, [key not in scene for key in LABELS])] = NO_LABEL
        return labels

    def _pair(
        self,
        image_id: str,
        graph: SceneGraph,
        coverage: npt.NDArray[np.float32],
        rng: random.Random,
    ) -> tuple[str, str, npt.NDArray[np.bool_]]:
        """A text that matches, one that doesn't, and the patches [N] they are held against.

        In a whole image a word has to be found before it can be compared, and nothing is learned
        for a long time; an object's own patches teach comparing first.
        """
        if rng.random() < self.config.close:
            index = rng.randrange(len(graph.objects))
            pair = mention_pair(graph, graph.objects[index], rng)
            if pair is not None:
                fewest = self.config.fewest_patches
                most = self.config.close_patches or self.config.most_patches
                count = round(fewest * (most / fewest) ** rng.random())
                return *pair, self._drawn(self.BACKGROUND + coverage[index], count, rng)
        pair = matching_pair(graph, self.split.questions.get(image_id, []), rng)
        return *pair, np.ones(coverage.shape[1], bool)

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See :class:`DescriptionSamples`."""
        return {
            "grid_image": torch.stack([sample["image"] for sample in samples]),
            "patch_labels": torch.from_numpy(np.stack([s["patch_labels"] for s in samples])),
            "captions": [text for sample in samples for text in sample["captions"]],
            "patch_mask": torch.from_numpy(np.concatenate([s["patch_masks"] for s in samples])),
            "texts": [text for sample in samples for text in sample["texts"]],
            "text_patch_mask": torch.from_numpy(
                np.concatenate([s["text_patch_masks"] for s in samples])
            ),
        }

    def _coverage(self, image_id: str) -> npt.NDArray[np.float32]:
        """Share of each patch that each object covers, [objects, N]."""
        masks = torch.from_numpy(self._masks(image_id)).float()
        side = self.config.image_size // self.config.patch_size
        shares: npt.NDArray[np.float32] = F.adaptive_avg_pool2d(masks[None], side)[0].numpy()
        return shares.reshape(len(masks), -1)

    def _patches(
        self, coverage: npt.NDArray[np.float32], rng: random.Random
    ) -> npt.NDArray[np.bool_]:
        """Patches [N] to be described: all of them, or drawn at random, or drawn by an object."""
        kind = rng.random()
        if kind < self.config.whole:
            return np.ones(coverage.shape[1], bool)
        weights = np.full(coverage.shape[1], self.BACKGROUND)
        if kind > self.config.whole + self.config.unguided:
            weights += coverage[rng.randrange(len(coverage))]
        count = rng.randint(self.config.fewest_patches, self.config.most_patches)
        return self._drawn(weights, count, rng)

    def _drawn(
        self, weights: npt.NDArray[np.floating], count: int, rng: random.Random
    ) -> npt.NDArray[np.bool_]:
        """``count`` patches [N] by weight, without replacement."""
        gumbel = -np.log([rng.expovariate(1.0) for _ in weights])
        chosen = np.zeros(len(weights), bool)
        chosen[np.argsort(-(np.log(weights) + gumbel))[:count]] = True
        return chosen


class MaskSamples(TypedDict):
    """A batch of B images with K prompts each, Q = B * K."""

    segmentation_image: Tensor
    """uint8 [B, 3, S, S]."""
    points: Tensor
    """float [Q, P, 2], (x, y) in pixels."""
    labels: Tensor
    """int64 [Q, P]: 1 for a point, 2 and 3 for the corners of a box, -1 for none."""
    image_index: Tensor
    """int64 [Q]."""
    masks: Tensor
    """float [Q, S, S]: 1 where the object is."""
    global_size: int
    """Images in the batch over all processes."""


@dataclass
class MaskDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_masks``."""

    prompts: int = option(4, "Prompts of an image.", at_least=1)
    most_points: int = option(3, "Points of a prompt, at most.", at_least=2)
    boxes: float = option(0.2, "Share of prompts that are boxes.", at_least=0, at_most=1)


class MaskDataset(PretrainingDataset):
    """Images with prompts, a few points in an object or the box around it, and its mask."""

    Config = MaskDataConfig

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """``image``, ``points``, ``labels`` and ``masks`` of a row."""
        image_id = self.records[row]
        graph = self.split.graphs[image_id]
        masks = self._masks(image_id)
        drawn = [rng.randrange(len(masks)) for _ in range(self.config.prompts)]
        prompts = [self._prompt(graph.objects[index], masks[index], rng) for index in drawn]
        side = self.config.image_size
        scale = np.array([side / graph.width, side / graph.height], np.float32)
        targets = torch.from_numpy(masks[drawn]).float()[None]
        return {
            "image": self._image(image_id),
            "points": np.stack([points for points, _ in prompts]) * scale,
            "labels": np.stack([labels for _, labels in prompts]),
            "masks": F.interpolate(targets, (side, side), mode="area")[0],
        }

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See :class:`MaskSamples`."""
        return {
            "segmentation_image": torch.stack([sample["image"] for sample in samples]),
            "points": torch.from_numpy(np.concatenate([s["points"] for s in samples])),
            "labels": torch.from_numpy(np.concatenate([s["labels"] for s in samples])),
            "masks": torch.cat([sample["masks"] for sample in samples]),
            "image_index": torch.arange(len(samples)).repeat_interleave(self.config.prompts),
        }

    def _prompt(
        self, item: GraphObject, mask: npt.NDArray[np.bool_], rng: random.Random
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Points [P, 2] and labels [P], padded with the label of no point."""
        points = np.zeros((self.config.most_points, 2), np.float32)
        labels = np.full(self.config.most_points, NONE)
        if rng.random() < self.config.boxes:
            x, y, width, height = item.box
            points[:2] = [(x, y), (x + width, y + height)]
            labels[:2] = TOP_LEFT, BOTTOM_RIGHT
        else:
            rows, columns = np.nonzero(mask)
            for place in range(rng.randint(1, self.config.most_points)):
                pixel = rng.randrange(len(rows))
                points[place] = columns[pixel] + 0.5, rows[pixel] + 0.5
                labels[place] = POINT
        return points, labels


class ReadingSamples(TypedDict):
    """A batch of Q questions with captions of their images."""

    questions: list[str]
    """[Q]."""
    captions: list[list[str]]
    """[Q] lists."""
    about: list[list[bool]]
    """Whether each caption is about an object that is asked about."""
    answers: list[str]
    """[Q]."""
    global_size: int
    """Questions in the batch over all processes."""


@dataclass
class ReadingDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_reading``."""

    fewest_captions: int = option(2, "Captions of a question, at least.", at_least=1)
    most_captions: int = option(10, "Captions of a question, at most.", at_least=1)
    focus: float = option(
        5.0, "How much more often the objects asked about are described than others.", at_least=1
    )
    errors: float = option(
        0.05, "Share of captions with one wrong word, as captioners make them.", at_least=0
    )

    def check_together(self, where: str) -> None:
        """Fewest and most in order."""
        if self.fewest_captions > self.most_captions:
            raise UserError(f"{where}.fewest_captions is above most_captions.")


class ReadingDataset(PretrainingDataset):
    """Questions with true captions of their image, mostly about the objects asked for."""

    Config = ReadingDataConfig

    def _records(self) -> list[tuple[str, GroundedQuestion]]:
        questions = self.split.questions
        return [(image_id, each) for image_id in sorted(questions) for each in questions[image_id]]

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """Question, captions, what they are about, and answer of a row."""
        image_id, question = self.records[row]
        graph = self.split.graphs[image_id]
        weights = [
            self.config.focus if item.id in question.objects else 1.0 for item in graph.objects
        ]
        count = rng.randint(self.config.fewest_captions, self.config.most_captions)
        captions = {  # each once, as the captioner's are distinct
            self._caption(item, graph, rng): item.id in question.objects
            for item in rng.choices(graph.objects, weights, k=count)
        }
        return {
            "questions": question.text,
            "captions": list(captions),
            "about": list(captions.values()),
            "answers": question.answer,
        }

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See :class:`ReadingSamples`."""
        return {name: [sample[name] for sample in samples] for name in samples[0]}

    def _caption(self, item: GraphObject, graph: SceneGraph, rng: random.Random) -> str:
        text = caption(item, graph, rng)
        return with_wrong_word(text, rng) if rng.random() < self.config.errors else text


def with_wrong_word(text: str, rng: random.Random) -> str:
    """The text with one attribute or name put in place of another of its kind."""
    words = text.split()
    places = [place for place, word in enumerate(words) if word in KEY_OF]
    place = rng.choice(places)
    words[place] = rng.choice(OBJECT_VALUES[KEY_OF[words[place]]])
    return " ".join(words)
