"""What a training run is going to do, known before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis_ext import distributed
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.datasets.mixed import MixedBatches, MixedDataset, split_of
from lavis_ext.datasets.samplers import TrainBatches
from lavis_ext.runners.config import RunConfig

TRAINING = "train"
"""Names the training data among a run's data sets."""


@dataclass(frozen=True)
class TrainingPlan:
    """Batches, steps and validations of a run. ``str()`` describes them in a few lines.

    Attributes:
        run: the section ``run``.
        examples: examples by split.
        images: images by split.
        batches: this process's training batches.
        noun: what the data set calls its examples.
    """

    run: RunConfig
    examples: Mapping[str, int]
    images: Mapping[str, int]
    batches: TrainBatches | MixedBatches
    noun: str = "examples"

    @classmethod
    def of(cls, run: RunConfig, datasets: Mapping[str, Any]) -> "TrainingPlan":
        """The plan of a run on these data sets, by split."""
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
    def steps_an_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.batches) // self.run.accum_grad_iters)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.run.max_epoch * self.steps_an_epoch
        return min(steps, self.run.max_steps or steps)

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations of each split in the whole run, the final one counted in."""
        every = self.run.val_every_steps or self.steps_an_epoch
        validations = -(-self.steps // every) + 1
        return {
            name: validations if split_of(name) in self.run.validation else 1
            for name in self.examples
            if split_of(name) in (*self.run.validation, *self.run.testing)
        }

    @property
    def validations(self) -> int:
        """Evaluations of the whole run."""
        return sum(self.evaluations.values())

    def __str__(self) -> str:
        world = distributed.world_size()
        a_step = self.run.batch_size_train * world * self.run.accum_grad_iters
        splits = ", ".join(f"{name} {count:,}" for name, count in self.examples.items())
        return "\n".join(
            [
                f"{self.noun:<10} {splits}",
                f"batches    {len(self.batches):,} an epoch; a step takes about {a_step:,} "
                f"{self.noun}: {self.run.batch_size_train} a batch, {world} process(es), "
                f"{self.run.accum_grad_iters} batch(es) a step",
                f"steps      {self.steps:,} in at most {self.run.max_epoch} epochs",
                f"evaluations {self.validations}, best by {self.run.metric}",
                f"device     {distributed.choose_device(self.run.device)}"
                f"{' in bfloat16' if self.run.amp else ''}"
                f"{', compiled' if self.run.compile else ''}",
            ]
        )


def _batches(run: RunConfig, dataset: Any) -> TrainBatches:
    return TrainBatches(
        dataset.image_codes(),
        batch_size=run.batch_size_train,
        examples_per_image=run.examples_per_image,
        seed=run.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
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
                f"run.train_dataset_ratios.{name}: the run trains on no data set of this name; "
                f"there are: {', '.join(names)}.{nearest(name, names)}"
            )
    if missing := [name for name in names if name not in given]:
        raise UserError(f"run.train_dataset_ratios has none for: {', '.join(missing)}.")
    return [given[name] for name in names]
