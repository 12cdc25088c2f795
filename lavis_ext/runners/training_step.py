"""One step of training: from batches to changed weights."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from lavis_ext import distributed
from lavis_ext.datasets.gqa import FusionSamples
from lavis_ext.runners.compiling import compile_model
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.freezing import train_mode


class TrainingStep:
    """Forward and backward passes, gradients over all processes, and the optimizer.

    Every process makes one and calls it together with the others.

    Args:
        run: the section ``run``.
        task: a task of LAVIS's kind.
        model: the model on its device, frozen but for what is trained.
        device: where this process computes.

    Attributes:
        optimizer: AdamW over what is trained. Its learning rate is ``run.init_lr`` until a schedule
            sets another.
    """

    def __init__(self, run: RunConfig, task: Any, model: Any, device: torch.device) -> None:
        self._run = run
        self._task = task
        self._device = device
        torch.manual_seed(run.seed + distributed.rank())
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._trained = list(trained.values())
        self._wrapped: Any = model
        if distributed.world_size() > 1:
            # BLIP's class embedding has a gradient of other strides; torch warns of the copy.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            self._wrapped = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                # BLIP has parts that no objective uses, such as its contrastive projections.
                find_unused_parameters=not all(name.startswith("fusion.") for name in trained),
            )
        train_mode(model)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._trained if p.ndim > 1]},
            {"params": [p for p in self._trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=run.init_lr,
            weight_decay=run.weight_decay,
            betas=(0.9, run.beta2),
            fused=True,
        )
        if run.compile:
            compile_model(model, run.compile_backend)

    def __call__(self, group: list[FusionSamples]) -> list[tuple[dict[str, torch.Tensor], int]]:
        """One step on the batches of ``group``, on the device, each question weighing the same.

        Returns each batch's report and count, as the model's ``forward`` gives them.
        """
        questions = sum(samples["global_size"] for samples in group)
        reports = []
        for place, samples in enumerate(group):
            last = place == len(group) - 1
            waits = last or distributed.world_size() == 1
            with nullcontext() if waits else self._wrapped.no_sync():
                with autocast(self._run, self._device):
                    output = self._task.train_step(self._wrapped, samples)
                # DDP takes the mean over processes, the loss is this process's part of the sum.
                share = samples["global_size"] * distributed.world_size() / questions
                (output["loss"] * share).backward()
            reports.append((output["report"], output["count"]))
        if self._run.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, self._run.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return reports


def autocast(run: RunConfig, device: torch.device) -> Any:
    """``run.amp``, as a context."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.amp)


def grouped(batches: Iterable[FusionSamples], size: int) -> Iterator[list[FusionSamples]]:
    """The batches of each step."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
