"""Training data of the miniature's EfficientSAM: images with prompts and target masks."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.scene_graphs import GraphObject
from lavis_ext.encoders.efficient_sam.prompt_encoder import BOTTOM_RIGHT, NONE, POINT, TOP_LEFT
from lavis_ext.pretraining.datasets import PretrainingDataConfig, PretrainingDataset


class MaskSamples(TypedDict):
    """A batch of B images with K prompts each, Q = B * K."""

    image: Tensor
    """uint8 [B, 3, S, S]."""
    points: Tensor
    """float [Q, P, 2], (x, y) in pixels."""
    labels: Tensor
    """int64 [Q, P]: 1 for a point, 2 and 3 for the corners of a box, -1 for padding."""
    image_index: Tensor
    """int64 [Q], the image of each prompt."""
    masks: Tensor
    """float [Q, S, S], the object's share of each pixel."""
    global_size: int
    """Images in the batch over all ranks."""


@dataclass
class MaskDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_masks``."""

    prompts: int = option(4, "Prompts per image.", at_least=1)
    most_points: int = option(3, "Most points of a prompt.", at_least=2)
    boxes: float = option(0.2, "Share of prompts that are boxes.", at_least=0, at_most=1)


class MaskDataset(PretrainingDataset):
    """Images with prompts, which are points in an object or its box, and the object's mask."""

    Config = MaskDataConfig

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """Draw prompts of a row: ``image``, ``points``, ``labels`` and ``masks``."""
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
            "image": torch.stack([sample["image"] for sample in samples]),
            "points": torch.from_numpy(np.concatenate([s["points"] for s in samples])),
            "labels": torch.from_numpy(np.concatenate([s["labels"] for s in samples])),
            "masks": torch.cat([sample["masks"] for sample in samples]),
            "image_index": torch.arange(len(samples)).repeat_interleave(self.config.prompts),
        }

    def _prompt(
        self, item: GraphObject, mask: npt.NDArray[np.bool_], rng: random.Random
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Points float32 [P, 2] and labels int64 [P], padded with the label ``NONE``."""
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
