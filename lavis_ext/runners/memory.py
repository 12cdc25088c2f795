"""Memory needed by a training step, compared with free memory before the first one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.distributed.sharding import parameter_bytes
from lavis_ext.models.base import TrainableModel
from lavis_ext.runners.config import AUTO, RunConfig
from lavis_ext.runners.flops import activation_bytes, input_bytes
from lavis_ext.runners.freezing import freeze_all_but, train_mode, trained_patterns
from lavis_ext.runners.plan import TRAINING, TrainingPlan
from lavis_ext.runners.resuming import saved_run_option
from lavis_ext.runners.run_log import log

if TYPE_CHECKING:
    from lavis_ext.runners.launch import Prepared

GIB = 2**30
OPTIMIZER_COPIES = 3
"""Extra copies of each trained parameter: its gradient and AdamW's two moments."""
MOST_KEPT = 10_000
"""Bytes of activations for each byte of a batch's images or tokens, at most: the largest ratio seen
is 1,400, of ViT-B/16 at 384 pixels with one example an image."""
AMP_SHARE = 0.5
"""Lower bound of bfloat16 autocast's activation memory as a share of float32's."""
AUTO_SHARE = 0.7
"""Share of the free memory for ``batch_size_train: auto``; loaders and kernels need the rest."""
LARGEST_AUTO = 1024
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
REMEDIES = (
    "Set run.batch_size_train=auto, which finds the largest batch that fits; or halve "
    "run.batch_size_train and double run.accum_grad_iters, limit run.images_per_batch, or set "
    "model.fusion.recompute_activations."
)


@dataclass(frozen=True)
class StepMemory:
    """Memory of a training step in one process, in bytes, in float32.

    Attributes:
        parameters: all weights, including frozen ones.
        optimizer: gradients and moments of trained parameters.
        activations: tensors kept for the backward pass.
    """

    parameters: int
    optimizer: int
    activations: int

    @classmethod
    def of(
        cls, model: torch.nn.Module, activations: int, sharded: Sequence[str] = ()
    ) -> "StepMemory":
        """Memory of a model whose frozen parameters are marked as such.

        Modules that match ``sharded`` count with this process's share.
        """
        sizes = parameter_bytes(model, sharded)
        return cls(
            sum(size for size, _ in sizes),
            OPTIMIZER_COPIES * sum(size for size, trained in sizes if trained),
            activations,
        )

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.parameters + self.optimizer + self.activations

    def to_come(self, run: RunConfig, device: torch.device) -> float:
        """Lower bound of the bytes still to be allocated on ``device`` once the model is built.

        Models are built on the CPU, so there the parameters are already allocated.
        """
        activations = self.activations * (AMP_SHARE if run.amp else 1)
        return self.optimizer + activations + (self.parameters if device.type != "cpu" else 0)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of ``device`` for this process, in bytes; None if the system doesn't report it.

    Processes of one machine share its main memory. In a container, the container's limit applies.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_free_of_machine(), _free_of_cgroup()) if free is not None]
    return min(found) // distributed.local_world_size() if found else None


def model_on_meta(cfg: Config, task: Any) -> TrainableModel:
    """The run's model on the ``meta`` device, frozen as in training."""
    with torch.device("meta"):
        model: TrainableModel = task.build_model(cfg, load_weights=False)
    freeze_all_but(model, trained_patterns(model, cfg.run.trainable))
    train_mode(model)
    return model


def fit_memory(cfg: Config, parts: "Prepared", stem: str) -> None:
    """Reject a run whose first step can't fit into memory; resolve ``batch_size_train: auto``.

    Called by every process after the model is built and before the first step. Models that can't
    run on the ``meta`` device are not checked.

    Raises UserError stating needed and free memory.
    """
    run: RunConfig = cfg.run
    if run.batch_size_train == AUTO:
        size = distributed.from_main_process(
            lambda: saved_run_option(run, stem, "batch_size_train")
        )
        if size is None:
            size = min(distributed.gather([_largest_fitting(cfg, parts)]))
            log.info("run.batch_size_train: auto is %d here", size)
        run.batch_size_train = cfg.config.run.batch_size_train = int(size)
        return
    if reasons := [each for each in distributed.gather([_lack(cfg, parts)]) if each]:
        raise UserError(reasons[0])


def _lack(cfg: Config, parts: "Prepared") -> str | None:
    """An error message if the first step doesn't fit into this process's memory."""
    free = free_bytes(parts.device)
    if free is None:
        return None
    samples = _first_batch(cfg.run, parts)
    if MOST_KEPT * input_bytes(samples) + StepMemory.of(parts.model, 0).total < free:
        return None  # certainly fits; counting takes a second
    needed = _measured(model_on_meta(cfg, parts.task), samples, cfg.run, parts)
    if needed is None or needed.to_come(cfg.run, parts.device) <= free:
        return None
    return (
        f"A step of this run needs about {needed.total / GIB:.3g} GiB per process for weights, "
        f"optimizer and activations, but {free / GIB:.3g} GiB are free. {REMEDIES}"
    )


def _first_batch(run: RunConfig, parts: "Prepared") -> Any:
    """The first batch of a run, with black images."""
    dataset = parts.datasets[TRAINING]
    with dataset.unread():
        return dataset.__getitems__(next(iter(TrainingPlan.of(run, parts.datasets).batches)))


def _measured(
    on_meta: TrainableModel, samples: Any, run: RunConfig, parts: "Prepared"
) -> StepMemory | None:
    """The memory of a step on this batch; None for a model that can't be counted."""
    try:
        activations = activation_bytes(on_meta, samples, parts.datasets[TRAINING].on_host)
    except (NotImplementedError, RuntimeError) as error:  # the model reads tensor values
        log.info("memory: not checked; the model doesn't run on the meta device (%.120s)", error)
        return None
    return StepMemory.of(on_meta, activations, run.sharded(on_meta))


def _largest_fitting(cfg: Config, parts: "Prepared") -> int:
    """The largest power of two that fits, extrapolating activations from two batch sizes."""
    run: RunConfig = cfg.run
    free = free_bytes(parts.device)
    if free is None:
        raise UserError(
            "run.batch_size_train is auto, but this system doesn't report its free memory; set a "
            "number."
        )
    on_meta = model_on_meta(cfg, parts.task)
    most = max(1, len(parts.datasets[TRAINING]) // distributed.world_size())
    most = min(LARGEST_AUTO, most)
    sizes = sorted({min(run.examples_per_image, most), min(4 * run.examples_per_image, most)})
    needed = []
    for size in sizes:
        samples = _first_batch(replace(run, batch_size_train=size), parts)
        memory = _measured(on_meta, samples, run, parts)
        if memory is None:
            raise UserError("run.batch_size_train can't be auto for this model; set a number.")
        needed.append(memory.to_come(run, parts.device))
    slope = max(0.0, (needed[-1] - needed[0]) / max(1, sizes[-1] - sizes[0]))

    def fits(size: int) -> bool:
        return needed[0] + slope * (size - sizes[0]) <= AUTO_SHARE * free

    size = 1 << (most.bit_length() - 1)
    while size > 1 and not fits(size):
        size //= 2
    if not fits(size):
        raise UserError(
            f"run.batch_size_train is auto, but a batch of one example needs about "
            f"{needed[0] / GIB:.3g} GiB more memory and {free / GIB:.3g} GiB are free. Use a "
            "smaller model type or smaller images, or set model.fusion.recompute_activations."
        )
    return size


def _free_of_machine() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * int(kib["MemAvailable"]) if "MemAvailable" in kib else None


def _free_of_cgroup() -> int | None:
    """Free memory under a container's limit (cgroup v2); file caches count as free."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (CGROUP / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    cached = int(dict(zip(stat[::2], stat[1::2], strict=False)).get("inactive_file", 0))
    return max(0, int(limit) - used + cached)
