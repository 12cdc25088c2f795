"""The task ``gqa_pointing``: whether heat maps point at the objects in questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.datasets.gqa.grounded_questions import read_grounded_questions
from lavis_ext.datasets.gqa.object_masks import ObjectMask, read_object_masks
from lavis_ext.datasets.gqa.questions import find_questions
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph, read_scene_graphs
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.evaluation.gqa.grounding import Attention, heat_grounding
from lavis_ext.evaluation.gqa.pointing import chance_of_pointing, hot_iou, points_into
from lavis_ext.evaluation.gqa.scorer import GqaScorer
from lavis_ext.registry import registry
from lavis_ext.tasks.base import Datasets, EvalStep, Evaluation, Totals, gathered
from lavis_ext.tasks.gqa import GqaTask

POINTING = (
    Metric("pointing_accuracy", "share"),
    Metric("chance_accuracy", "share", better=None),
    Metric("raw_heat_iou"),
    Metric("refined_heat_iou"),
    Metric("raw_grounding", "share"),
    Metric("refined_grounding", "share"),
    Metric("questions_without_points", better="min"),
)
LOCATED = "located"
"""Name of the questions' metrics in evaluations."""


@dataclass(frozen=True, slots=True)
class Target:
    """Mask of a question's object.

    ``boxes`` [K, 4] are those of all objects in question and answer, for grounding.
    """

    mask: ObjectMask
    boxes: Attention


@registry.register_task("gqa_pointing")
class GqaPointingTask(GqaTask):
    """Compares heat maps with object masks, for questions about a single object.

    Needs scene graphs, questions with annotated objects, and object masks in COCO's instance
    format, as in mini-GQA.
    """

    takes_features = False
    answering = True
    default_metric = "pointing_accuracy"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._targets: dict[str, Target] = {}

    def build_datasets(self, cfg: Any, splits: Sequence[str]) -> dict[str, Datasets]:
        """Data sets by name, then by split, of questions about a single annotated object."""
        datasets = super().build_datasets(cfg, splits)
        for name, section in cfg.datasets.items():
            for split, dataset in datasets[name].items():
                self._keep_pointed_at(section, split, dataset)
        return datasets

    def _keep_pointed_at(self, section: Any, split: str, dataset: Any) -> None:
        boxes = GqaScorer(dataset.table, dataset.files).boxes
        questions = find_questions(Path(section.root), split, section.subset)
        graphs = read_scene_graphs(dataset.files.scene_graphs)
        masks = read_object_masks(Path(section.root), split, graphs)
        targets = read_targets(graphs, masks, questions, boxes)
        known = [i in targets for i in dataset.table.columns["question_id"].to_pylist()]
        if not any(known):
            raise UserError(
                f"{section.root}: no question of '{split}' names exactly one object. "
                "gqa_pointing needs mini-GQA, or data with its annotations and masks."
            )
        dataset.table = dataset.table.take(np.flatnonzero(known))
        dataset.mismatched = None  # they refer to rows of the whole table
        self._targets |= targets

    def metrics(self, model: Any) -> list[Metric]:
        """Accuracy and overlap of heat maps, and chance accuracy."""
        return [*POINTING]

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums, count and each question's metrics of a batch."""
        located = model.locate(samples)
        found = {}
        for row, question_id in enumerate(samples["ids"]):
            target = self._targets[question_id]
            mask = target.mask.decode()
            heat = located.heat[row].reshape(located.grid).cpu().numpy()
            patch_heat = located.patch_heat[row].reshape(located.grid).cpu().numpy()
            values = {
                "pointing_accuracy": points_into(heat, mask),
                "chance_accuracy": chance_of_pointing(mask, located.grid),
                "raw_heat_iou": hot_iou(heat, mask),
                "refined_heat_iou": hot_iou(located.refined[row].cpu().numpy(), mask),
                "raw_grounding": heat_grounding(target.boxes, heat),
                "refined_grounding": heat_grounding(target.boxes, patch_heat),
                "questions_without_points": not bool((located.labels[row] == 1).any()),
            }
            found[question_id] = {name: float(value) for name, value in values.items()}
        report = {
            name: torch.tensor(sum(each[name] for each in found.values()))
            for name in by_name(POINTING)
        }
        return EvalStep(report, len(samples["ids"]), {LOCATED: found})

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Means over all processes' questions. Called by every process."""
        evaluation = super().after_evaluation(val_result, dataset, model)
        return replace(evaluation, details=gathered(val_result, LOCATED))

    def by_image(self, dataset: Any, evaluation: Evaluation) -> ByImage | None:
        """All metrics by image."""
        columns = (dataset.table.columns[name].to_pylist() for name in ("question_id", "image_id"))
        images = dict(zip(*columns, strict=True))
        located: dict[str, dict[str, float]] = evaluation.details
        values = {
            name: np.array([each[name] for each in located.values()]) for name in by_name(POINTING)
        }
        return ByImage.of(values, [images[question] for question in located])


def read_targets(
    graphs: Mapping[str, SceneGraph],
    masks: Mapping[str, Sequence[ObjectMask]],
    questions: Path,
    boxes: Mapping[str, Attention],
) -> dict[str, Target]:
    """Read targets of all questions about a single object, by question id.

    ``masks`` are in the order of the image's graph. ``boxes`` are those of the scored questions'
    objects.
    """
    targets = {}
    for image_id, asked_there in read_grounded_questions(questions).items():
        ids = [item.id for item in graphs[image_id].objects]
        for question in asked_there:
            if len(question.asked) == 1 and question.id in boxes:
                (asked,) = question.asked
                mask = masks[image_id][ids.index(asked)]
                targets[question.id] = Target(mask, boxes[question.id])
    return targets
