"""Optimizer steps, and sums over what their batches report."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavis_ext import distributed
from lavis_ext.checkpoints.weights import load_into
from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.gqa.dataset import FusionSamples
from lavis_ext.registry import registry
from lavis_ext.runners.compiling import compile_model
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.freezing import train_mode
from lavis_ext.runners.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from lavis_ext.runners.random_states import random_states, set_random_states
from lavis_ext.runners.run_state import RankState


class Stepper:
    """Trains a model that is frozen but for what is trained, in step with the other processes.

    Seeds torch's random numbers, differently in each process.

    Args:
        task: a task of LAVIS's kind.
        model: the model, on ``device``, in the same state in every process.
        run: the section ``run``.
        total_steps: those that the schedule is made for.
        device: where this process computes.

    Attributes:
        optimizer: AdamW over what is trained.
    """

    def __init__(
        self, task: Any, model: Any, run: RunConfig, total_steps: int, device: torch.device
    ) -> None:
        torch.manual_seed(run.seed + distributed.rank())
        self._task, self._model, self._run, self._device = task, model, run, device
        self._window: dict[str, Tensor] = {}
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._wrapped: Any = model
        if distributed.world_size() > 1:
            # BLIP's class embedding has a gradient of other strides; torch warns of the copy.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            in_fusion = {name.startswith("fusion.") for name in self._parameters}
            self._wrapped = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                # BLIP has parts that no objective uses, such as its contrastive projections.
                find_unused_parameters=False in in_fusion,
            )
        train_mode(model)
        self._buffers = _buffers_in_training(model)
        self.optimizer = make_optimizer(self._parameters, run)
        self._schedule = registry.get_lr_scheduler_class(run.lr_sched)(
            optimizer=self.optimizer,
            max_steps=total_steps,
            init_lr=run.init_lr,
            min_lr=run.min_lr,
            max_epoch=run.max_epoch,
            decay_rate=run.lr_decay_rate,
            warmup_steps=run.warmup_steps,
            warmup_start_lr=run.warmup_lr,
        )
        if run.compile:
            compile_model(model, run.compile_backend)

    @classmethod
    def at_rest(cls, task: Any, model: Any, run: RunConfig, device: torch.device) -> "Stepper":
        """One whose learning rate is 0: its steps cost what they cost, and change no weight."""
        return cls(task, model, replace(run, init_lr=0.0, min_lr=0.0, warmup_lr=0.0), 1, device)

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def step(self, group: list[FusionSamples], epoch: int, step: int) -> Tensor:
        """One optimizer step on the batches of ``group``, each question weighing the same.

        Returns 1, on the device and in every process, if the loss or a gradient isn't finite; then
        nothing has changed, and nothing has waited to see it.
        """
        self._schedule.step(cur_epoch=epoch, cur_step=step)
        questions = sum(samples["global_size"] for samples in group)
        for place, samples in enumerate(group):
            last = place == len(group) - 1
            waits = last or distributed.world_size() == 1
            with nullcontext() if waits else self._wrapped.no_sync():
                with autocast(self._run, self._device):
                    output = self._task.train_step(self._wrapped, samples)
                counts = not samples.get("stand_in", False)
                # DDP takes the mean over processes, the loss is this process's part of the sum.
                share = counts * samples["global_size"] * distributed.world_size() / questions
                # 1 or, for a loss that isn't finite, NaN: then all gradients are, everywhere.
                finite = output["loss"].detach() * 0 + 1
                (output["loss"] * (share * finite)).backward()
            self._count(output["report"], output["count"], (finite == 1) & counts)
        parameters = list(self._parameters.values())
        if self._run.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, self._run.max_grad_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        skipped = (~torch.isfinite(norm)).float()
        cast(Any, self.optimizer).found_inf = skipped  # as torch's GradScaler does
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    def window(self) -> tuple[dict[str, float], float]:
        """Means over the questions since the last call, in all processes, and their number.

        Batches whose loss wasn't finite are left out; where there was nothing else, there are no
        means.
        """
        names = sorted(self._window)
        sums = distributed.sum_over_processes(torch.stack([self._window[n] for n in names]))
        figures = dict(zip(names, sums.tolist(), strict=True))
        self._window.clear()
        questions = figures.pop("questions")
        return {n: value / questions for n, value in figures.items() if questions}, questions

    def tensors(self) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """What training changes of the model by name, and the optimizer's tensors by parameter."""
        buffers = {name: self._model.get_buffer(name) for name in self._buffers}
        optimizer = optimizer_tensors(self.optimizer, self._parameters)
        return {**self._parameters, **buffers}, optimizer

    def rank_state(self) -> RankState:
        """What is this process's alone."""
        random, generators = random_states(self._device)
        return RankState(random, {n: value.cpu() for n, value in self._window.items()}, generators)

    def load(
        self,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Mapping[str, Tensor]],
        ranks: list[RankState],
    ) -> None:
        """Put back what ``tensors`` and, in each process, ``rank_state`` gave.

        With more processes than then the new ones keep their seed; with fewer they share the sums.
        Raises UserError where other parameters are trained.
        """
        if differing := sorted(model.keys() ^ {*self._parameters, *self._buffers}):
            raise UserError(
                "run.resume: the state and the model have other trained parameters: "
                f"{listed(differing)}. Go on with the code that the run was started with."
            )
        load_into(self._model, dict(model), name="run.resume", allow_missing=["*"])
        load_optimizer(self.optimizer, self._parameters, optimizer)
        rank = distributed.rank()
        for each in ranks[rank :: distributed.world_size()]:
            self._add({name: value.to(self._device) for name, value in each.window.items()})
        if rank < len(ranks):
            set_random_states(dict(ranks[rank].random), ranks[rank].generators, self._device)

    def _count(self, report: dict[str, Tensor], questions: int, counts: Tensor) -> None:
        sums = {**report, "questions": torch.tensor(float(questions), device=self._device)}
        self._add({n: torch.where(counts, v, torch.zeros_like(v)) for n, v in sums.items()})

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            self._window[name] = self._window.get(name, torch.zeros_like(value)) + value


def _buffers_in_training(model: nn.Module) -> list[str]:
    """Names of the buffers, of those that weights come with, of modules in training mode."""
    saved = model.state_dict().keys()
    names = [
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if module.training
        for name, _ in module.named_buffers(recurse=False)
    ]
    return [name for name in names if name in saved]


def autocast(run: RunConfig, device: torch.device) -> Any:
    """bfloat16 where the run asks for it. Its range is float32's, so that nothing is scaled."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.amp)


def grouped(batches: Iterable[FusionSamples], size: int) -> Iterator[list[FusionSamples]]:
    """The batches of each step."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
