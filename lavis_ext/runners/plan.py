"""The plan of a training run: batches, steps and evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis_ext import distributed
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.tables import Table, facts
from lavis_ext.datasets.mixed import MixedBatches, MixedDataset, split_of
from lavis_ext.datasets.samplers import TrainBatches
from lavis_ext.runners.config import RunConfig

TRAINING = "train"
"""Role of the training data among a run's data sets."""
LABEL_WIDTH = len("evaluations")
"""Label width of the plan and of the dry run's lines."""


@dataclass(frozen=True)
class TrainingPlan:
    """Batches, steps and validations of a run.

    Attributes:
        run: the config's section ``run``.
        examples: number of examples by split.
        images: number of images by split.
        batches: this process's training batches.
        noun: the data set's word for its examples, such as ``questions``.
    """

    run: RunConfig
    examples: Mapping[str, int]
    images: Mapping[str, int]
    batches: TrainBatches | MixedBatches
    noun: str = "examples"

    @classmethod
    def of(cls, run: RunConfig, datasets: Mapping[str, Any]) -> "TrainingPlan":
        """The plan of a run on ``datasets``, by split."""
        training = datasets[TRAINING]
        batches: TrainBatches | MixedBatches
        if isinstance(training, MixedDataset):
            parts = [_batches(run, each) for each in training.datasets]
            batches = MixedBatches(parts, _ratios(run, training.names), run.seed)
        else:
            batches = _batches(run, training)
        images = {name: _images(each) for name, each in datasets.items()}
        examples = {name: len(each) for name, each in datasets.items()}
        return cls(run, examples, images, batches, training.noun)

    @property
    def examples_per_epoch(self) -> float:
        """Training examples of an epoch, over all processes."""
        return self.batches.mean_size[0] * distributed.world_size() * len(self.batches)

    @property
    def examples_per_step(self) -> float:
        """Average training examples of a step, over all processes."""
        a_step = self.batches.mean_size[0] * distributed.world_size() * self.run.accum_grad_iters
        return min(a_step, self.examples_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return -(-len(self.batches) // self.run.accum_grad_iters)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.run.max_epoch * self.steps_per_epoch
        return min(steps, self.run.max_steps or steps)

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations of each split in the whole run, including the final one."""
        every = self.run.val_every_steps or self.steps_per_epoch
        validations = -(-self.steps // every) + 1
        return {
            name: validations if split_of(name) in self.run.validation else 1
            for name in self.examples
            if split_of(name) in (*self.run.validation, *self.run.testing)
        }

    @property
    def validations(self) -> int:
        """Total number of evaluations."""
        return sum(self.evaluations.values())

    @property
    def validations_worth(self) -> float:
        """All evaluations by their examples, in units of one validation of all its splits."""
        validated = [name for name in self.evaluations if split_of(name) in self.run.validation]
        one = sum(self.examples[name] for name in validated)
        work = sum(times * self.examples[name] for name, times in self.evaluations.items())
        return work / one if one else float(self.validations)

    @property
    def warnings(self) -> list[str]:
        """Warnings about settings that don't suit the run's length, each with a remedy."""
        if self.run.warmup_steps < max(self.steps, 1):
            return []
        return [
            f"run.warmup_steps is {self.run.warmup_steps:,} and the run has {self.steps:,} steps: "
            "the learning rate never reaches run.init_lr. Set "
            f"run.warmup_steps={self.steps // 10}."
        ]

    def facts(self) -> Table:
        """The plan as aligned lines."""
        world = distributed.world_size()
        a_batch, images = self.batches.mean_size
        splits = ", ".join(f"{name} {count:,}" for name, count in self.examples.items())
        precision = " in bfloat16" if self.run.amp else ""
        compiled = ", compiled" if self.run.compile else ""
        return facts(
            [
                (self.noun, splits),
                (
                    "batches",
                    f"{len(self.batches):,} per epoch; a step takes about "
                    f"{self.examples_per_step:,.0f} {self.noun}: "
                    f"{a_batch:,.0f} per batch, about {images:,.0f} image(s), {world} process(es), "
                    f"{self.run.accum_grad_iters} batch(es) per step",
                ),
                ("steps", f"{self.steps:,} in at most {self.run.max_epoch} epochs"),
                ("evaluations", f"{self.validations}, best by {self.run.metric}"),
                ("device", f"{distributed.choose_device(self.run.device)}{precision}{compiled}"),
            ],
            LABEL_WIDTH,
        )


def _batches(run: RunConfig, dataset: Any) -> TrainBatches:
    return TrainBatches(
        dataset.image_codes(),
        batch_size=run.examples_per_batch,
        examples_per_image=run.examples_per_image,
        seed=run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        images_per_batch=run.images_per_batch,
    )


def _images(dataset: Any) -> int:
    if isinstance(dataset, MixedDataset):
        return sum(map(_images, dataset.datasets))
    return len(np.unique(dataset.image_codes()))


def _ratios(run: RunConfig, names: list[str]) -> list[float] | None:
    given = run.train_dataset_ratios
    if given is None:
        return None
    for name in given:
        if name not in names:
            raise UserError(
                f"run.train_dataset_ratios.{name}: the run doesn't train on this data set, but on: "
                f"{', '.join(names)}.{nearest(name, names)}"
            )
    if missing := [name for name in names if name not in given]:
        raise UserError(f"run.train_dataset_ratios lacks an entry for: {', '.join(missing)}.")
    return [given[name] for name in names]
