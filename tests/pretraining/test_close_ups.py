"""Parts of a picture are described by what they show, and by nothing else."""

import random
from pathlib import Path

import numpy as np
import pytest

from lavis_ext.pretraining.builder import read_split
from lavis_ext.pretraining.close_ups import SEEN, draw_close_up
from lavis_ext.pretraining.datasets import Split
from lavis_ext.pretraining.description_data import DescriptionDataConfig, DescriptionDataset


@pytest.fixture(scope="module")
def split(mini_gqa: Path) -> Split:
    return read_split(mini_gqa, "train")


def test_a_close_up_has_the_objects_that_it_shows_and_their_places_in_it(split: Split) -> None:
    rng = random.Random(0)
    sides = []
    for image_id, graph in split.graphs.items():
        whole = np.stack([mask.decode() for mask in split.masks[image_id]])
        part = draw_close_up(graph, whole, 4.0, rng)
        left, top, right, bottom = part.box
        assert 0 <= left < right <= graph.width
        assert 0 <= top < bottom <= graph.height
        assert (part.graph.width, part.graph.height) == (right - left, bottom - top)
        sides.append(right - left)
        names = [item.id for item in part.graph.objects]
        shares = {
            item.id: mask[top:bottom, left:right].sum() / mask.sum()
            for item, mask in zip(graph.objects, whole, strict=True)
        }
        if names != [item.id for item in graph.objects]:
            assert names == [name for name, share in shares.items() if share >= SEEN]
        for item, mask in zip(part.graph.objects, part.masks, strict=True):
            x, y, width, height = item.box
            assert mask[y : y + height, x : x + width].sum() == mask.sum() > 0
            assert {other for _, other in item.relations} <= set(names)
    assert min(sides) < 50, "no part is enlarged much"
    assert max(sides) > 100, "all parts are enlarged much"


def test_an_enlarged_object_fills_more_of_the_picture(split: Split) -> None:
    def background(close_ups: float) -> float:
        config = DescriptionDataConfig(close_ups=close_ups, captions=0, pairs=0)
        data = DescriptionDataset(config, split, None, seed=0)
        labels = [data.draw(row, random.Random(row))["patch_labels"] for row in range(20)]
        return float(np.mean(np.stack(labels)[..., 0] < 0))

    assert background(1.0) < background(0.0) - 0.05
