"""Pointing metrics of heat maps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lavis_ext.config.loader import Config
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.evaluation.gqa.pointing import chance_of_pointing, hot_iou, points_into
from lavis_ext.tasks.gqa_pointing import GqaPointingTask

PROJECT = Path(__file__).parents[3]
MASK = np.zeros((8, 8), bool)
MASK[2:4, 4:8] = True  # row 1, columns 2 and 3 of a 4x4 grid


def heat_at(*cells: tuple[int, int]) -> np.ndarray:
    heat = np.zeros((4, 4))
    for cell in cells:
        heat[cell] = 1.0
    return heat


def test_the_hottest_position_lies_in_the_object_or_not() -> None:
    assert points_into(heat_at((1, 2)), MASK)
    assert not points_into(heat_at((2, 2)), MASK)
    assert not points_into(np.zeros((4, 4)), MASK), "no heat points nowhere"


def test_chance_is_the_objects_share_of_positions() -> None:
    assert chance_of_pointing(MASK, (4, 4)) == 2 / 16
    assert chance_of_pointing(np.ones((8, 8), bool), (4, 4)) == 1


def test_overlap_is_counted_in_pixels_above_half_of_the_maximum() -> None:
    assert hot_iou(heat_at((1, 2), (1, 3)), MASK) == 1
    assert hot_iou(heat_at((1, 2)), MASK) == 0.5
    assert hot_iou(heat_at((1, 2), (0, 0)), MASK) == pytest.approx(4 / 12)
    assert hot_iou(heat_at((1, 2)) + 0.4 * heat_at((0, 0)), MASK) == 0.5, "0.4 is not hot"
    assert hot_iou(np.zeros((4, 4)), MASK) == 0
    assert hot_iou(MASK.astype(float), MASK) == 1, "as fine as the mask"


def test_the_task_draws_no_mismatched_questions_for_its_part_of_the_split(
    configured: Callable[..., Config], mini_gqa: Path
) -> None:
    cfg = configured(
        "model.model_type=mini",
        "model.objectives.itm.weight=1",
        "model.fusion.name=grid_only",
        f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}",
        "datasets.gqa_fusion.mini_gqa.images=40",
        "run.small_test_size=null",
        cfg_path=PROJECT / "projects" / "pnp-vqa" / "eval" / "mini_pointing.yaml",
    )
    task = GqaPointingTask.setup_task(cfg)
    dataset = task.build_datasets(cfg, ["testdev"])["gqa_fusion"]["testdev"]
    rows = np.arange(len(dataset))
    samples = dataset.__getitems__(BatchRows(rows, 0, len(rows)))
    assert "mismatched_input" not in samples or not samples["mismatched_input"]
    model = task.build_model(cfg).eval()
    result = task.evaluation(model, [samples], cuda_enabled=False)
    evaluation = task.after_evaluation(result, dataset, model)
    metrics, by_image = evaluation.metrics, task.by_image(dataset, evaluation)
    assert by_image is not None
    assert set(by_image.images) == set(dataset.table.columns["image_id"].to_pylist())
    for name, value in metrics.items():
        assert by_image.mean(name) == pytest.approx(value), name
    assert metrics["pointing_accuracy"] > 5 * metrics["chance_accuracy"], "the miniature that ships"
    assert metrics["refined_heat_iou"] > 1.5 * metrics["raw_heat_iou"]
    assert metrics["refined_grounding"] > 1.1 * metrics["raw_grounding"] > 0
