"""The optimizer with its state by parameter name, and the learning rate."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lavis_ext.registry import LinearWarmupCosineLRScheduler, registry
from lavis_ext.runners.config import RunConfig


def make_optimizer(parameters: Mapping[str, nn.Parameter], run: RunConfig) -> torch.optim.AdamW:
    """AdamW over these parameters by name; what has one dimension doesn't decay.

    It is the fused one, which leaves everything as it is in a step whose ``found_inf`` is 1 without
    that anybody waits for the device to know.
    """
    decayed = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=run.init_lr,
        weight_decay=run.weight_decay,
        betas=(0.9, run.beta2),
        fused=True,
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by parameter, such as ``exp_avg``; none before its first step."""
    return {
        name: {key: torch.as_tensor(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Put back what ``optimizer_tensors`` gave. Rates and decay stay those of ``optimizer``."""
    names = {parameter: name for name, parameter in parameters.items()}
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        place: {key: _laid_out_as(p, value) for key, value in tensors[names[p]].items()}
        for place, p in enumerate(ordered)
        if names[p] in tensors
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_as(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A copy in memory as fused kernels expect it: that of the parameter."""
    if value.shape != parameter.shape:  # the count of steps
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@registry.register_lr_scheduler("warmup_cosine_lr")
class WarmupCosineLRScheduler(LinearWarmupCosineLRScheduler):
    """A linear warm-up, then half a cosine: LAVIS's schedule in steps instead of epochs.

    LAVIS keeps the rate the same through an epoch and warms up in the first one only, which is
    coarse for few, long epochs.
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
