"""``--dry-run``: a run's plan and cost, measured on a few of its steps with random weights."""

import math
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.common.files import room_in, size_in_words
from lavis_ext.config.loader import Config
from lavis_ext.config.renamed import told
from lavis_ext.datasets.base import to_device
from lavis_ext.datasets.loader import Loader
from lavis_ext.distributed.peers import COMPUTING
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.models.base import TrainableModel
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.disk_budget import DiskBudget
from lavis_ext.runners.flops import BatchFlops, count_flops
from lavis_ext.runners.freezing import freeze_all_but, parts_table, train_mode, trained_patterns
from lavis_ext.runners.launch import Prepared, prepared, stem
from lavis_ext.runners.plan import TRAINING, TrainingPlan
from lavis_ext.runners.resuming import expected_folder
from lavis_ext.runners.run_log import duration, log
from lavis_ext.runners.trainer import Stepper, grouped

UNSETTLED = 1
"""The first step makes the optimizer's state, and waits for workers that have just started."""
UNSETTLED_COMPILED = 2
"""Programs are made in the first, and sometimes in the second."""


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps as they were timed; what the first ones had to prepare is left out of the rates.

    Attributes:
        seconds: of each step, waiting for its batches and copying them counted in.
        waiting: seconds of it in which no batch was ready.
        examples: in the step, over all processes.
        unsettled: how many of the first steps don't count, for all that are made only once.
        peak_bytes: the most memory held: a GPU's, or this process's.
    """

    seconds: tuple[float, ...]
    waiting: tuple[float, ...]
    examples: tuple[int, ...]
    unsettled: int
    peak_bytes: int

    @property
    def rates(self) -> list[float]:
        """Examples a second, of each step that counts."""
        pairs = zip(self.examples, self.seconds, strict=True)
        return [examples / seconds for examples, seconds in pairs][self.unsettled :]

    @property
    def rate(self) -> float:
        """The median of ``rates``."""
        return statistics.median(self.rates)

    @property
    def waiting_share(self) -> float:
        """Share of the time in which no batch was ready, 0 to 1."""
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
    """Take steps until ``budget`` seconds are over, and ``at_least`` so many, or ``at_most``.

    Entered by every process. ``stepper`` is one ``for_timing``.
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
"""Of measuring; a step that takes longer is finished."""
STEPS = 20
"""Measured at most."""
GIB = 2**30
OPTIMIZER_COPIES = 3
"""Of what is trained, beside itself: gradient, and AdamW's two moments."""


def run_costs(plan: TrainingPlan, parts: Prepared, on_meta: Any) -> Iterator[str]:
    """Lines on the cost of a run, as they become known. Entered by every process.

    Args:
        plan: the run's plan.
        parts: its data, and its model on the device that it will train on.
        on_meta: the model on the device ``meta``, to be counted.
    """
    batch = next(iter(plan.batches))
    dataset = parts.datasets[TRAINING]
    flops = count_flops(on_meta, dataset.__getitems__(batch), dataset.on_host)
    yield from _flops_lines(flops)
    needed = step_bytes(parts.model, flops)
    free = free_bytes() if parts.device.type == "cpu" else None
    yield (
        f"memory     about {needed / GIB:.3g} GiB a process for weights, optimizer and "
        "activations, in float32" + (f"; {free / GIB:.3g} GiB are free" if free is not None else "")
    )
    if distributed.from_main_process(lambda: free is not None and needed > free):
        yield f"measured   {TOO_LARGE}"
        return
    try:
        measured = measure_steps(
            plan.run,
            Stepper.for_timing(parts.task, parts.model, plan.run, parts.device),
            parts.datasets[TRAINING],
            plan.batches,
            parts.device,
            budget=SECONDS,
            at_most=STEPS,
        )
    except torch.OutOfMemoryError:
        yield f"measured   {TOO_LARGE}"
        return
    yield from _time_lines(plan, measured, flops, parts.device)


TOO_LARGE = (
    "nothing: a batch doesn't fit into memory. Halve run.batch_size_train and double "
    "run.accum_grad_iters, or set model.fusion.recompute_activations."
)


def step_bytes(model: torch.nn.Module, flops: BatchFlops) -> int:
    """Bytes that a step holds: parameters, what is kept of those that are trained, activations."""
    parameters = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return flops.activation_bytes + sum(
        size * (1 + OPTIMIZER_COPIES * trained) for size, trained in parameters
    )


def free_bytes() -> int | None:
    """Memory that programs can still have, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * int(kib["MemAvailable"]) if "MemAvailable" in kib else None


def _flops_lines(flops: BatchFlops) -> Iterator[str]:
    for name, passes in (("an image", flops.image), ("an example", flops.example)):
        encoders = f" ({_shown(flops.encoders)} of it encoders)" if flops.encoders else ""
        yield (
            f"FLOPs      {name} {_shown(passes.both)}: forward {_shown(passes.forward)}"
            f"{encoders if name == 'an image' else ''}, backward {_shown(passes.backward)}"
        )
    yield (
        f"           an example with its share of the image {_shown(flops.an_example)}, at "
        f"{flops.examples / flops.images:.3g} examples an image"
    )


def _time_lines(
    plan: TrainingPlan, measured: MeasuredSteps, flops: BatchFlops, device: torch.device
) -> Iterator[str]:
    counted = measured.seconds[measured.unsettled :]
    threads = f" with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    speed = f", {_shown(measured.rate * flops.an_example)}/s"
    fed = (
        "random tokens in place of features" if plan.run.features else "images read as in training"
    )
    yield (
        f"measured   {len(counted)} step(s) after {measured.unsettled} to warm up, on {device}"
        f"{threads}, {distributed.world_size()} process(es); random weights, {fed}"
    )
    yield (
        f"           {statistics.median(counted):.3g} s a step ({min(counted):.3g} to "
        f"{max(counted):.3g}), {measured.rate:.3g} {plan.noun}/s{speed}, "
        f"{100 * measured.waiting_share:.0f} % waiting for data, "
        f"{measured.peak_bytes / GIB:.3g} GiB at most"
    )
    epoch = plan.examples[TRAINING] / measured.rate
    training = epoch * plan.steps / plan.steps_an_epoch
    forward = sum(
        times * flops.evaluation(plan.images[split], plan.examples[split])
        for split, times in plan.evaluations.items()
    )
    evaluating = forward / (measured.rate * flops.an_example)
    yield (
        f"time       {duration(epoch)} an epoch, {duration(training + evaluating)} the run; "
        f"{duration(evaluating)} of it evaluations, reckoned from their FLOPs"
    )


def _shown(flops: float) -> str:
    thousands = min(5, int(math.log10(max(flops, 1.0)) // 3))
    return f"{flops / 1000**thousands:.3g} {('', 'k', 'M', 'G', 'T', 'P')[thousands]}FLOP"


def describe(cfg: Config, splits: Sequence[str]) -> None:
    """Log the resolved config, the plan of a training run, and what it will cost here.

    Entered by every process. A few steps are taken with random weights; no weights are fetched, and
    nothing is left of it.
    """
    with prepared(cfg, splits, load_weights=False) as parts:
        if cfg.renamed:
            log.info(told(cfg.renamed))
        plan = TrainingPlan.of(cfg.run, parts.datasets)
        log.info("%s\n%s\n\n%s", OmegaConf.to_yaml(cfg.config), parts_table(parts.model), plan)
        budget, folder = DiskBudget.of(parts.model, plan), expected_folder(cfg.run, stem(cfg))
        log.info(
            "disk       %s for %s; %s are free in %s",
            size_in_words(budget.needed),
            budget,
            size_in_words(room_in(folder)),
            folder,
        )
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.of_splits, parts.model)
            log.info("features   %s", features.size())
            features.stand_in()
        with torch.device("meta"):
            on_meta: TrainableModel = parts.task.build_model(cfg, load_weights=False)
        freeze_all_but(on_meta, trained_patterns(on_meta, cfg.run.trainable))
        train_mode(on_meta)
        parts.model.to(parts.device)
        for line in run_costs(plan, parts, on_meta):
            log.info(line)
