"""``--dry-run``: a run's plan and cost, measured on a few of its steps with random weights."""

import math
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.checkpoints.needs import check_needs
from lavis_ext.common.files import free_space, size_in_words
from lavis_ext.common.grouping import grouped
from lavis_ext.common.tables import facts
from lavis_ext.config.loader import Config
from lavis_ext.config.renamed import renamed_line
from lavis_ext.datasets.base import to_device
from lavis_ext.datasets.loader import Loader
from lavis_ext.distributed.peers import COMPUTING
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.runners.config import AUTO, RunConfig
from lavis_ext.runners.disk_budget import DiskBudget
from lavis_ext.runners.flops import BatchFlops, count_flops
from lavis_ext.runners.freezing import parts_table
from lavis_ext.runners.launch import Prepared, prepared, stem
from lavis_ext.runners.memory import (
    GIB,
    REMEDIES,
    StepMemory,
    fit_memory,
    free_bytes,
    model_on_meta,
)
from lavis_ext.runners.plan import LABEL_WIDTH, TRAINING, TrainingPlan
from lavis_ext.runners.progress import duration
from lavis_ext.runners.resuming import expected_folder
from lavis_ext.runners.run_log import log
from lavis_ext.runners.trainer import Stepper, placed

Fact = tuple[str, str]
"""A label and a text; an empty label continues the previous fact."""
UNSETTLED = 1
"""Warm-up steps: the first allocates the optimizer's state and waits for new loader workers."""
UNSETTLED_COMPILED = 2
"""Warm-up steps with ``run.compile``, which compiles in the first and sometimes the second."""


@dataclass(frozen=True)
class MeasuredSteps:
    """Timed steps; the first ones, with their one-time work, are left out of the rates.

    Attributes:
        seconds: duration of each step, including waiting for and copying its batches.
        waiting: the part of ``seconds`` in which no batch was ready.
        examples: number of examples of each step, over all processes.
        unsettled: number of first steps left out because of one-time work.
        peak_bytes: peak memory of the GPU or, on a CPU, of this process.
    """

    seconds: tuple[float, ...]
    waiting: tuple[float, ...]
    examples: tuple[int, ...]
    unsettled: int
    peak_bytes: int

    @property
    def rates(self) -> list[float]:
        """Examples per second of each counted step."""
        pairs = zip(self.examples, self.seconds, strict=True)
        return [examples / seconds for examples, seconds in pairs][self.unsettled :]

    @property
    def rate(self) -> float:
        """The median of ``rates``."""
        return statistics.median(self.rates)

    @property
    def waiting_share(self) -> float:
        """Share of the time in which no batch was ready, in [0, 1]."""
        return sum(self.waiting[self.unsettled :]) / sum(self.seconds[self.unsettled :])


def measure_steps(
    run: RunConfig,
    stepper: Stepper,
    dataset: Any,
    batches: Any,
    device: torch.device,
    *,
    budget: float,
    at_least: int = 1,
    at_most: int | None = None,
) -> MeasuredSteps:
    """Time between ``at_least`` and ``at_most`` steps, for about ``budget`` seconds.

    Called by every process. ``stepper`` comes from ``Stepper.for_timing``.
    """
    unsettled = UNSETTLED_COMPILED if run.compile else UNSETTLED
    if run.compile:
        at_least = max(at_least, unsettled + 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    on_host = dataset.on_host
    seconds: list[float] = []
    waiting: list[float] = []
    examples: list[int] = []

    def unfinished() -> bool:
        if len(seconds) < at_least:
            return True
        return sum(seconds) < budget and (at_most is None or len(seconds) < at_most)

    loader = Loader(dataset, batches, run.num_workers, run.data_faults, persistent=True)
    groups = grouped(_without_end(loader, batches), run.accum_grad_iters)
    while distributed.from_main_process(unfinished):
        distributed.at(COMPUTING, len(seconds) + 1)
        started = time.perf_counter()
        group = next(groups)
        waiting.append(time.perf_counter() - started)
        on_device = [to_device(samples, device, on_host) for samples in group]
        stepper.step(on_device, batches.epoch, len(seconds))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        examples.append(sum(samples["global_size"] for samples in group))
    return MeasuredSteps(
        tuple(seconds),
        tuple(waiting),
        tuple(examples),
        min(len(seconds) - 1, unsettled),
        _peak_bytes(device),
    )


def _without_end(loader: Loader, batches: Any) -> Iterator[Any]:
    while True:
        yield from loader
        batches.epoch += 1


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


SECONDS = 20.0
"""Time budget of the measurement in seconds; a step in progress is completed."""
STEPS = 20
"""Maximum number of measured steps."""


def run_costs(plan: TrainingPlan, parts: Prepared, on_meta: Any) -> Iterator[Fact]:
    """Yield a run's costs as they are measured. Called by every process.

    Args:
        plan: the run's plan.
        parts: its data, and its model on the training device.
        on_meta: the model on the ``meta`` device, for counting FLOPs.
    """
    batch = next(iter(plan.batches))
    dataset = parts.datasets[TRAINING]
    samples = dataset.__getitems__(batch)
    try:
        flops = count_flops(on_meta, samples, dataset.on_host)
    except (RuntimeError, NotImplementedError):  # such as a loss that depends on a tensor's value
        flops = count_flops(parts.model, samples, dataset.on_host)
    yield from _flops_lines(flops)
    needed, free = StepMemory.of(parts.model, flops.activation_bytes), free_bytes(parts.device)
    yield (
        "memory",
        f"about {needed.total / GIB:.3g} GiB per process for weights, optimizer and activations "
        "in float32" + (f"; {free / GIB:.3g} GiB are free" if free is not None else ""),
    )
    for run in smaller_runs(plan.run):
        taken = TrainingPlan.of(run, parts.datasets)
        share = taken.batches.mean_size[1] / plan.batches.mean_size[1]
        step = replace(needed, activations=int(share * needed.activations))
        lacking = free is not None and step.to_come(run, parts.device) > free
        if any(distributed.gather([lacking])):
            continue
        try:
            measured = _measured(taken, parts)
        except torch.OutOfMemoryError:
            if distributed.world_size() > 1:  # the others are in the middle of the step
                yield "measured", f"nothing: {TOO_LARGE}. {REMEDIES}"
                return
            continue
        if run is not plan.run:
            size = f"{taken.batches.mean_size[0]:,.0f} {plan.noun}"
            yield "", f"{TOO_LARGE}; a batch of {size} does, and is measured. {REMEDIES}"
        yield from _time_lines(plan, measured, flops, parts)
        return
    yield "measured", f"nothing: {TOO_LARGE}, not even one about a single image. {REMEDIES}"


TOO_LARGE = "a batch doesn't fit into memory"


def smaller_runs(run: RunConfig) -> Iterator[RunConfig]:
    """Yield ``run``, then runs of half the batch and so on, down to one image a batch.

    Their steps have one batch: in time, accumulated batches cost what single ones do.
    """
    yield run
    size = run.examples_per_batch
    while size > run.examples_per_image:
        size = max(size // 2, run.examples_per_image)
        yield replace(run, batch_size_train=size, accum_grad_iters=1)
    if run.images_per_batch != 1:
        yield replace(run, batch_size_train=size, accum_grad_iters=1, images_per_batch=1)


def _measured(plan: TrainingPlan, parts: Prepared) -> MeasuredSteps:
    return measure_steps(
        plan.run,
        Stepper.for_timing(parts.task, parts.model, plan.run, parts.device),
        parts.datasets[TRAINING],
        plan.batches,
        parts.device,
        budget=SECONDS,
        at_most=STEPS,
    )


def _flops_lines(flops: BatchFlops) -> Iterator[Fact]:
    for name, passes in (("an image", flops.image), ("an example", flops.example)):
        encoders = f" ({_shown(flops.encoders)} of it encoders)" if flops.encoders else ""
        yield (
            "FLOPs" if name == "an image" else "",
            f"{name} {_shown(passes.both)}: forward {_shown(passes.forward)}"
            f"{encoders if name == 'an image' else ''}, backward {_shown(passes.backward)}",
        )
    yield (
        "",
        f"an example with its share of the image {_shown(flops.an_example)}, at "
        f"{flops.examples / flops.images:.3g} examples per image",
    )


def _time_lines(
    plan: TrainingPlan, measured: MeasuredSteps, flops: BatchFlops, parts: Prepared
) -> Iterator[Fact]:
    device = parts.device
    counted = measured.seconds[measured.unsettled :]
    threads = f" with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    speed = f", {_shown(measured.rate * flops.an_example)}/s"
    fed = "images read as in training"
    if parts.task.made_up:
        fed = "black images, so without the time of reading images"
    if plan.run.features:
        fed = "random tokens in place of features"
    yield (
        "measured",
        f"{len(counted)} step(s) after {measured.unsettled} for warm-up, on {device}"
        f"{threads}, {distributed.world_size()} process(es); random weights, {fed}",
    )
    yield (
        "",
        f"{statistics.median(counted):.3g} s per step ({min(counted):.3g} to "
        f"{max(counted):.3g}), {measured.rate:.3g} {plan.noun}/s{speed}, "
        f"{100 * measured.waiting_share:.0f} % waiting for data, "
        f"{measured.peak_bytes / GIB:.3g} GiB at peak",
    )
    epoch = plan.examples_per_epoch / measured.rate
    training = epoch * plan.steps / plan.steps_per_epoch
    forward = sum(
        times * flops.evaluation(plan.images[split], plan.examples[split])
        for split, times in plan.evaluations.items()
    )
    evaluating = forward / (measured.rate * flops.an_example)
    yield (
        "time",
        f"{duration(epoch)} per epoch, {duration(training + evaluating)} for the run; "
        f"{duration(evaluating)} of it for evaluations, estimated from their FLOPs",
    )


def _shown(flops: float) -> str:
    thousands = min(5, int(math.log10(max(flops, 1.0)) // 3))
    return f"{flops / 1000**thousands:.3g} {('', 'k', 'M', 'G', 'T', 'P')[thousands]}FLOP"


def describe(cfg: Config, splits: Sequence[str]) -> None:
    """Log the resolved config, the plan of a training run and its cost on this machine.

    Called by every process. A few steps run with random weights; nothing is downloaded or
    left on disk. Data sets that aren't there yet are made up if their size is known.

    Raises UserError at the end, after the plan, for files that the run lacks.
    """
    with prepared(cfg, splits, load_weights=False) as parts:
        for name in sorted(parts.task.made_up):
            log.info(
                "datasets.%s isn't on this machine: made-up questions, as many as published, and "
                "black images stand in for it",
                name,
            )
        if cfg.renamed:
            log.info(renamed_line(cfg.renamed))
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.of_splits, parts.model)
            features.stand_in()
        if cfg.run.batch_size_train == AUTO:
            fit_memory(cfg, parts, stem(cfg))
        plan = TrainingPlan.of(cfg.run, parts.datasets)
        log.info(
            "%s\n%s\n\n%s", OmegaConf.to_yaml(cfg.config), parts_table(parts.model), plan.facts()
        )
        for warning in plan.warnings:
            log.warning(warning)
        budget = DiskBudget.of(parts.model, plan)
        folder = expected_folder(cfg.run, stem(cfg), cfg.read_at)
        needed, free = size_in_words(budget.needed), size_in_words(free_space(folder))
        kept = size_in_words(budget.kept)
        _log_fact(
            "disk",
            f"at most {needed}, for {budget}; {kept} stay at the end; {free} free in {folder}",
        )
        if cfg.run.features is not None:
            _log_fact("features", features.size())
        on_meta = model_on_meta(cfg, parts.task)
        placed(parts.model, cfg.run, parts.device)
        for fact in run_costs(plan, parts, on_meta):
            _log_fact(*fact)
        # Last, since the plan is useful even before weights and data are there.
        check_needs(parts.needs, config=cfg.args.cfg_path)


def _log_fact(label: str, text: str) -> None:
    log.info("%s", facts([(label, text)], LABEL_WIDTH))
