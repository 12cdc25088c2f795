"""A few steps of a run, timed on the machine that is to run it."""

import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lavis_ext import distributed
from lavis_ext.datasets.gqa.dataset import FusionSamples, GqaFusionDataset
from lavis_ext.datasets.loader import Loader, to_device
from lavis_ext.datasets.samplers import TrainBatches
from lavis_ext.distributed.peers import COMPUTING
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.stepper import Stepper, grouped

UNSETTLED = 1
"""The first step makes the optimizer's state, and waits for workers that have just started."""
UNSETTLED_COMPILED = 2
"""Programs are made in the first, and sometimes in the second."""


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps as they were timed; what the first ones had to prepare is left out of the figures.

    Attributes:
        seconds: of each step, waiting for its batches and copying them counted in.
        waiting: seconds of it in which no batch was ready.
        questions: in the step, over all processes.
        unsettled: how many of the first steps don't count, for all that are made only once.
        peak_bytes: the most memory held: a GPU's, or this process's.
    """

    seconds: tuple[float, ...]
    waiting: tuple[float, ...]
    questions: tuple[int, ...]
    unsettled: int
    peak_bytes: int

    @property
    def rates(self) -> list[float]:
        """Questions a second, of each step that counts."""
        pairs = zip(self.questions, self.seconds, strict=True)
        return [questions / seconds for questions, seconds in pairs][self.unsettled :]

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
    dataset: GqaFusionDataset,
    batches: TrainBatches,
    device: torch.device,
    *,
    budget: float,
    at_least: int = 1,
    at_most: int | None = None,
) -> MeasuredSteps:
    """Take steps until ``budget`` seconds are over, and ``at_least`` so many, or ``at_most``.

    Entered by every process. ``stepper`` is to be one at rest.
    """
    unsettled = UNSETTLED_COMPILED if run.compile else UNSETTLED
    if run.compile:
        at_least = max(at_least, unsettled + 1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds: list[float] = []
    waiting: list[float] = []
    questions: list[int] = []

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
        on_device = [to_device(samples, device) for samples in group]
        stepper.step(on_device, batches.epoch, len(seconds))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        questions.append(sum(samples["global_size"] for samples in group))
    return MeasuredSteps(
        tuple(seconds),
        tuple(waiting),
        tuple(questions),
        min(len(seconds) - 1, unsettled),
        _peak_bytes(device),
    )


def _without_end(loader: Loader, batches: TrainBatches) -> Iterator[FusionSamples]:
    while True:
        yield from loader
        batches.epoch += 1


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
