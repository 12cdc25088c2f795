"""The optimizer, its state by parameter name, and learning rate schedules."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lavis_ext.common.errors import UserError
from lavis_ext.common.patterns import matching
from lavis_ext.common.tables import Table, table
from lavis_ext.distributed.sharding import is_sharded, sharded_as, whole
from lavis_ext.registry import LinearWarmupCosineLRScheduler, registry
from lavis_ext.runners.config import RunConfig


def make_optimizer(parameters: Mapping[str, nn.Parameter], run: RunConfig) -> torch.optim.AdamW:
    """AdamW over named parameters, without weight decay for one-dimensional ones.

    The fused implementation is used: it skips a step whose ``found_inf`` is 1 without synchronizing
    with the device. Each group has ``scale``, the ratio of its learning rate to the schedule's.
    Raises UserError as ``rates_and_decays`` does.
    """
    members: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for name, (rate, decay) in rates_and_decays(list(parameters), run).items():
        parameter = parameters[name]
        # Fused kernels don't accept a mix of sharded and whole parameters.
        scale = 1.0 if rate == run.init_lr else rate / run.init_lr
        key = scale, decay if parameter.ndim > 1 else 0.0, is_sharded(parameter)
        members.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": each, "weight_decay": decay, "scale": scale}
        for (scale, decay, _), each in members.items()
    ]
    return torch.optim.AdamW(
        groups,
        lr=run.init_lr,
        weight_decay=run.weight_decay,
        betas=(0.9, run.beta2),
        fused=True,
    )


def rates_and_decays(names: Sequence[str], run: RunConfig) -> dict[str, tuple[float, float]]:
    """Learning rate after warm-up and weight decay of each trained parameter.

    Raises UserError for a pattern of ``run.parameter_groups`` without matches, and for a parameter
    in two groups.
    """
    found: dict[str, tuple[float, float]] = {}
    group_of: dict[str, str] = {}
    for place, group in enumerate(run.parameter_groups or ()):
        where = f"run.parameter_groups[{place}]"
        rate = run.init_lr if group.init_lr is None else group.init_lr
        decay = run.weight_decay if group.weight_decay is None else group.weight_decay
        for pattern in group.parameters:
            key = f"{where}.parameters"
            for name in matching(pattern, names, "trained parameter", key):
                if group_of.setdefault(name, where) != where:
                    raise UserError(
                        f"{group_of[name]} and {where} both match {name}. A parameter may be in "
                        "only one group."
                    )
                found[name] = rate, decay
    return {name: found.get(name, (run.init_lr, run.weight_decay)) for name in names}


def groups_table(parameters: Mapping[str, nn.Parameter], run: RunConfig) -> Table:
    """Table of a run's learning rates and weight decays with their parameter counts."""
    counts: dict[tuple[float, float], int] = {}
    for name, values in rates_and_decays(list(parameters), run).items():
        counts[values] = counts.get(values, 0) + parameters[name].numel()
    rows = [(f"{rate:g}", f"{decay:g}", f"{count:,}") for (rate, decay), count in counts.items()]
    return table(rows, ("learning rate", "weight decay", "parameters"))


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply the rate that a schedule has set for all groups by each group's ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] *= group["scale"]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by parameter, such as ``exp_avg``; none before its first step.

    Called by every process if parameters are sharded.
    """
    return {
        name: {
            key: whole(torch.as_tensor(value)) for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Restore tensors from ``optimizer_tensors``; learning rates and decays are unchanged."""
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
    """A copy with the parameter's memory layout, as fused kernels expect."""
    if value.shape != parameter.shape:  # the step count
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(sharded_as(parameter, value))


@registry.register_lr_scheduler("warmup_cosine_lr")
class WarmupCosineLRScheduler(LinearWarmupCosineLRScheduler):
    """Linear warm-up, then half a cosine: LAVIS's schedule by steps instead of epochs.

    LAVIS keeps the rate constant within an epoch and warms up in the first one only, too coarse for
    few, long epochs.
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
        """Learning rate at ``step``."""
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return float(self.warmup_start_lr + share * (self.init_lr - self.warmup_start_lr))
        share = min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
        return float(
            self.min_lr + 0.5 * (self.init_lr - self.min_lr) * (1 + math.cos(math.pi * share))
        )
