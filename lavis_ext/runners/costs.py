"""What a run will cost: FLOPs, memory, and time, measured on a few of its steps."""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis_ext import distributed
from lavis_ext.runners.flops import BatchFlops, count_flops
from lavis_ext.runners.measured_steps import MeasuredSteps, measure_steps
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.run_log import duration
from lavis_ext.runners.stepper import Stepper

if TYPE_CHECKING:
    from lavis_ext.runners.launch import Prepared

SECONDS = 20.0
"""Of measuring; a step that takes longer is finished."""
STEPS = 20
"""Measured at most."""
GIB = 2**30
OPTIMIZER_COPIES = 3
"""Of what is trained, beside itself: gradient, and AdamW's two moments."""


def run_costs(plan: TrainingPlan, parts: "Prepared", on_meta: Any) -> Iterator[str]:
    """Lines on the cost of a run, as they become known. Entered by every process.

    Args:
        plan: the run's plan.
        parts: its data, and its model on the device that it will train on.
        on_meta: the model on the device ``meta``, to be counted.
    """
    flops = None
    if hasattr(on_meta, "image_streams"):  # others don't say what of them is an image's
        batch = next(iter(plan.batches))
        flops = count_flops(on_meta, parts.datasets["train"].__getitems__(batch))
        yield from _flops_lines(flops)
        needed = step_bytes(parts.model, flops)
        free = free_bytes() if parts.device.type == "cpu" else None
        yield (
            f"memory     about {needed / GIB:.3g} GiB a process for weights, optimizer and "
            "activations, in float32"
            + (f"; {free / GIB:.3g} GiB are free" if free is not None else "")
        )
        if distributed.from_main_process(lambda: free is not None and needed > free):
            yield f"measured   {TOO_LARGE}"
            return
    try:
        measured = measure_steps(
            plan.run,
            Stepper.at_rest(parts.task, parts.model, plan.run, parts.device),
            parts.datasets["train"],
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
    for name, passes in (("an image", flops.image), ("a question", flops.question)):
        encoders = f" ({_shown(flops.encoders)} of it encoders)" if flops.encoders else ""
        yield (
            f"FLOPs      {name} {_shown(passes.both)}: forward {_shown(passes.forward)}"
            f"{encoders if name == 'an image' else ''}, backward {_shown(passes.backward)}"
        )
    yield (
        f"           a question with its share of the image {_shown(flops.a_question)}, at "
        f"{flops.questions / flops.images:.3g} questions an image"
    )


def _time_lines(
    plan: TrainingPlan, measured: MeasuredSteps, flops: BatchFlops | None, device: torch.device
) -> Iterator[str]:
    counted = measured.seconds[measured.unsettled :]
    threads = f" with {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    speed = f", {_shown(measured.rate * flops.a_question)}/s" if flops else ""
    fed = (
        "random tokens in place of features" if plan.run.features else "images read as in training"
    )
    yield (
        f"measured   {len(counted)} step(s) after {measured.unsettled} to warm up, on {device}"
        f"{threads}, {distributed.world_size()} process(es); random weights, {fed}"
    )
    yield (
        f"           {statistics.median(counted):.3g} s a step ({min(counted):.3g} to "
        f"{max(counted):.3g}), {measured.rate:.3g} questions/s{speed}, "
        f"{100 * measured.waiting_share:.0f} % waiting for data, "
        f"{measured.peak_bytes / GIB:.3g} GiB at most"
    )
    epoch = plan.questions["train"] / measured.rate
    training = epoch * plan.steps / plan.steps_an_epoch
    if flops is None:
        yield f"time       {duration(epoch)} an epoch, {duration(training)} of training"
        return
    forward = sum(
        times * flops.evaluation(plan.images[split], plan.questions[split])
        for split, times in plan.evaluations.items()
    )
    evaluating = forward / (measured.rate * flops.a_question)
    yield (
        f"time       {duration(epoch)} an epoch, {duration(training + evaluating)} the run; "
        f"{duration(evaluating)} of it evaluations, reckoned from their FLOPs"
    )


def _shown(flops: float) -> str:
    thousands = min(5, int(math.log10(max(flops, 1.0)) // 3))
    return f"{flops / 1000**thousands:.3g} {('', 'k', 'M', 'G', 'T', 'P')[thousands]}FLOP"
