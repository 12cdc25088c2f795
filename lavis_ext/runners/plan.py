"""What a training run is going to do, known before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lavis_ext import distributed
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.samplers import TrainBatches
from lavis_ext.runners.config import RunConfig


@dataclass(frozen=True)
class TrainingPlan:
    """Batches, steps and validations of a run. ``str()`` describes them in a few lines.

    Attributes:
        run: the section ``run``.
        questions: questions by split.
        images: images by split.
        batches: this process's training batches.
    """

    run: RunConfig
    questions: Mapping[str, int]
    images: Mapping[str, int]
    batches: TrainBatches

    @classmethod
    def of(cls, run: RunConfig, datasets: Mapping[str, GqaFusionDataset]) -> "TrainingPlan":
        """The plan of a run on these data sets, by split."""
        batches = TrainBatches(
            datasets["train"].image_codes(),
            batch_size=run.batch_size_train,
            questions_per_image=run.questions_per_image,
            seed=run.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        images = {name: len(np.unique(each.image_codes())) for name, each in datasets.items()}
        return cls(run, {name: len(each) for name, each in datasets.items()}, images, batches)

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
        validations = -(-self.steps // (self.run.val_every_steps or self.steps_an_epoch))
        return {
            **dict.fromkeys(self.run.valid_splits, validations + 1),
            **dict.fromkeys(self.run.test_splits, 1),
        }

    @property
    def validations(self) -> int:
        """Evaluations of the whole run."""
        return sum(self.evaluations.values())

    def __str__(self) -> str:
        world = distributed.world_size()
        a_step = self.run.batch_size_train * world * self.run.accum_grad_iters
        splits = ", ".join(f"{name} {count:,}" for name, count in self.questions.items())
        return "\n".join(
            [
                f"questions  {splits}",
                f"batches    {len(self.batches):,} an epoch; a step takes about {a_step:,} "
                f"questions: {self.run.batch_size_train} a batch, {world} process(es), "
                f"{self.run.accum_grad_iters} batch(es) a step",
                f"steps      {self.steps:,} in at most {self.run.max_epoch} epochs",
                f"evaluations {self.validations}, best by {self.run.metric}",
                f"device     {distributed.choose_device(self.run.device)}"
                f"{' in bfloat16' if self.run.amp else ''}"
                f"{', compiled' if self.run.compile else ''}",
            ]
        )
