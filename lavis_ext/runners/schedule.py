"""The learning rate: a linear warm-up, then half a cosine, step by step."""

import math
from typing import Any

from torch.optim import Optimizer

from lavis_ext.registry import LinearWarmupCosineLRScheduler, registry


@registry.register_lr_scheduler("fusion_warmup_cosine_lr")
class WarmupCosineLRScheduler(LinearWarmupCosineLRScheduler):
    """LAVIS's schedule in steps of the run instead of epochs.

    LAVIS keeps the rate the same through an epoch and warms up in the first one only; GQA is
    trained for few, long epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        init_lr: float,
        min_lr: float,
        warmup_steps: int,
        warmup_start_lr: float,
        max_epoch: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            min_lr=min_lr,
            init_lr=init_lr,
            warmup_steps=warmup_steps,
            warmup_start_lr=warmup_start_lr,
            max_epoch=max_epoch,
            **kwargs,
        )
        self.max_steps = max_steps

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the rate for ``cur_step``, counted from the start of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(cur_step)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return float(self.warmup_start_lr + share * (self.init_lr - self.warmup_start_lr))
        share = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return float(
            self.min_lr + 0.5 * (self.init_lr - self.min_lr) * (1 + math.cos(math.pi * share))
        )
