"""Training data of the miniature's BLIP: images with patch captions, texts and patch labels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.grounded_questions import GroundedQuestion
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph
from lavis_ext.datasets.mini_gqa.vocabulary import SCENE_VALUES, SHAPES
from lavis_ext.pretraining.close_ups import draw_close_up
from lavis_ext.pretraining.datasets import PretrainingDataConfig, PretrainingDataset
from lavis_ext.pretraining.descriptions import describe, happens, value_of
from lavis_ext.pretraining.matching_pairs import fact_pair, matching_pair, mention_pair

LABELS: dict[str, tuple[str, ...]] = {
    **{key: SHAPES.values[key] for key in ("name", "color", "pattern", "size")},
    **SCENE_VALUES,
}
"""Values of each label of a patch. Values of other worlds have no label."""
NO_LABEL = -100
"""Label that the loss ignores."""


class DescriptionSamples(TypedDict):
    """A batch of B images with C captions and 2K texts each."""

    image: Tensor
    """uint8 [B, 3, S, S]."""
    patch_labels: Tensor
    """int64 [B, N, len(LABELS)], indices into the values of each of LABELS, or NO_LABEL."""
    captions: list[str]
    """[B * C], image by image."""
    patch_mask: Tensor
    """bool [B * C, N], the patches that each caption describes."""
    texts: list[str]
    """[B * 2K]: for each image K matching texts, then K mismatched ones."""
    text_patch_mask: Tensor
    """bool [B * 2K, N], the patches that each text is matched with."""
    global_size: int
    """Images in the batch over all ranks."""


@dataclass
class DescriptionDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_descriptions``."""

    patch_size: int = option(16, "Side in pixels of a patch.", at_least=1)
    captions: int = option(3, "Captions per image.", at_least=0)
    pairs: int = option(3, "Pairs of a matching and a mismatched text per image.", at_least=0)
    close: float = option(
        0.5,
        "Share of pairs about one object that are matched with only some of the patches.",
        at_least=0,
        at_most=1,
    )
    close_patches: int | None = option(
        None,
        "Most patches of such a pair; by default most_patches. Their number is log-uniform.",
        at_least=1,
    )
    fewest_patches: int = option(6, "Fewest patches that a caption describes.", at_least=1)
    most_patches: int = option(20, "Most patches that a caption describes.", at_least=1)
    unguided: float = option(
        0.15, "Share of captions of uniformly drawn patches.", at_least=0, at_most=1
    )
    whole: float = option(0.15, "Share of captions of all patches.", at_least=0, at_most=1)
    sentences: float = option(
        0.0,
        "Share of captions, and of pairs about one object, that are whole sentences, as GQA's "
        "answers: the gear is red.",
        at_least=0,
        at_most=1,
    )
    close_ups: float = option(
        0.0, "Share of samples that show a part of the picture, enlarged.", at_least=0, at_most=1
    )
    zoom: float = option(
        4.0, "Largest enlargement of such a part; drawn log-uniformly from 1 on.", at_least=1
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for more patches than the image has."""
        count = (self.image_size // self.patch_size) ** 2
        if not self.fewest_patches <= self.most_patches <= count:
            raise UserError(
                f"{where}: fewest_patches {self.fewest_patches} and most_patches "
                f"{self.most_patches} must be in this order, and at most the {count} patches."
            )


class DescriptionDataset(PretrainingDataset):
    """Images with captions of some of their patches, matching and mismatched texts, and labels.

    PNP-VQA captions sampled patches. A captioner this small has to be trained on such samples to
    describe their contents.
    """

    Config = DescriptionDataConfig
    BACKGROUND = 0.005
    """Weight of a patch without the object, relative to 1 for one that it covers."""
    LABELED_SHARE = 0.25
    """Smallest share of a patch that an object covers to give its label."""
    SHARPNESS = 3
    """Exponent of an object's share in the patches; a caption is most likely about the largest."""

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """Draw ``captions`` and ``texts`` of a row, with their patches, ``image`` and labels."""
        image_id = self.records[row]
        picture = self.images.read(image_id)
        graph, masks = self.split.graphs[image_id], self._masks(image_id)
        questions: Sequence[GroundedQuestion] = self.split.questions.get(image_id, [])
        if happens(self.config.close_ups, rng):
            close_up = draw_close_up(graph, masks, self.config.zoom, rng)
            picture = picture.crop(close_up.box)
            graph, masks = close_up.graph, close_up.masks
            questions = []  # they are about the whole picture
        coverage = self._coverage(masks)
        captions, patch_masks = [], []
        for _ in range(self.config.captions):
            chosen = self._caption_patches(coverage, rng)
            seen = coverage[:, chosen].sum(axis=1) / coverage.sum(axis=1)
            weights = seen**self.SHARPNESS + 1e-6
            item = rng.choices(graph.objects, weights.tolist())[0]
            captions.append(describe(item, graph, rng, sentences=self.config.sentences))
            patch_masks.append(chosen)
        matched, mismatched, text_masks = [], [], []
        for _ in range(self.config.pairs):
            true, false, patches = self._pair(graph, questions, coverage, rng)
            matched.append(true)
            mismatched.append(false)
            text_masks.append(patches)
        return {
            "image": self._process(picture)["image"],
            "patch_labels": self._labels(graph, coverage),
            "captions": captions,
            "patch_masks": np.array(patch_masks, dtype=bool).reshape(-1, coverage.shape[1]),
            "texts": matched + mismatched,
            "text_patch_masks": np.array(text_masks * 2, dtype=bool).reshape(-1, coverage.shape[1]),
        }

    def _labels(
        self, graph: SceneGraph, coverage: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        """int64 [N, len(LABELS)], of the object that covers most of a patch, and of the scene."""
        scene = {"place": graph.place, "weather": graph.weather}
        of_objects = np.array(
            [
                [
                    values.index(value) if value in values else NO_LABEL
                    for key, values in LABELS.items()
                    for value in (scene[key] if key in scene else value_of(item, key),)
                ]
                for item in graph.objects
            ]
        )
        labels: npt.NDArray[np.int64] = of_objects[coverage.argmax(axis=0)]
        bare = coverage.max(axis=0) < self.LABELED_SHARE
        labels[np.ix_(bare, [key not in scene for key in LABELS])] = NO_LABEL
        return labels

    def _pair(
        self,
        graph: SceneGraph,
        questions: Sequence[GroundedQuestion],
        coverage: npt.NDArray[np.float32],
        rng: random.Random,
    ) -> tuple[str, str, npt.NDArray[np.bool_]]:
        """A matching text, a mismatched one, and a mask [N] of the patches to match them with.

        On whole images the model has to find an object before it can compare words with it, which
        delays learning. Pairs with the object's own patches teach comparison first.
        """
        if rng.random() < self.config.close:
            index = rng.randrange(len(graph.objects))
            pair_of = fact_pair if happens(self.config.sentences, rng) else mention_pair
            pair = pair_of(graph, graph.objects[index], rng, self.world)
            if pair is not None:
                fewest = self.config.fewest_patches
                most = self.config.close_patches or self.config.most_patches
                count = round(fewest * (most / fewest) ** rng.random())
                return *pair, self._draw_patches(self.BACKGROUND + coverage[index], count, rng)
        pair = None
        if happens(self.config.sentences, rng):
            pair = fact_pair(graph, rng.choice(graph.objects), rng, self.world)
        if pair is None:
            pair = matching_pair(graph, questions, rng, self.world)
        return *pair, np.ones(coverage.shape[1], bool)

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See :class:`DescriptionSamples`."""
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "patch_labels": torch.from_numpy(np.stack([s["patch_labels"] for s in samples])),
            "captions": [text for sample in samples for text in sample["captions"]],
            "patch_mask": torch.from_numpy(np.concatenate([s["patch_masks"] for s in samples])),
            "texts": [text for sample in samples for text in sample["texts"]],
            "text_patch_mask": torch.from_numpy(
                np.concatenate([s["text_patch_masks"] for s in samples])
            ),
        }

    def _coverage(self, masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """float32 [objects, N], the share of each patch that each object covers."""
        side = self.config.image_size // self.config.patch_size
        pixels = torch.from_numpy(masks).float()
        shares: npt.NDArray[np.float32] = F.adaptive_avg_pool2d(pixels[None], side)[0].numpy()
        return shares.reshape(len(masks), -1)

    def _caption_patches(
        self, coverage: npt.NDArray[np.float32], rng: random.Random
    ) -> npt.NDArray[np.bool_]:
        """Mask [N] of patches to caption: all, uniformly drawn, or drawn around an object."""
        kind = rng.random()
        if kind < self.config.whole:
            return np.ones(coverage.shape[1], bool)
        weights = np.full(coverage.shape[1], self.BACKGROUND)
        if kind > self.config.whole + self.config.unguided:
            weights += coverage[rng.randrange(len(coverage))]
        count = rng.randint(self.config.fewest_patches, self.config.most_patches)
        return self._draw_patches(weights, count, rng)

    def _draw_patches(
        self, weights: npt.NDArray[np.floating], count: int, rng: random.Random
    ) -> npt.NDArray[np.bool_]:
        """Mask [N] of ``count`` patches drawn by weight without replacement, by Gumbel top-k."""
        gumbel = -np.log([rng.expovariate(1.0) for _ in weights])
        chosen = np.zeros(len(weights), bool)
        chosen[np.argsort(-(np.log(weights) + gumbel))[:count]] = True
        return chosen
