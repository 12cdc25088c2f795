"""Batches from loader workers to the device."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from lavis_ext.datasets.batches import BatchRows
from lavis_ext.datasets.gqa import DataFault, FusionSamples, GqaFusionDataset
from lavis_ext.errors import UserError


def make_loader(
    dataset: GqaFusionDataset,
    batches: Sampler[BatchRows],
    workers: int,
    *,
    persistent: bool = False,
) -> DataLoader[FusionSamples | DataFault]:
    """A loader of ``dataset`` by ``batches``, with at most as many workers as there are cores.

    It draws nothing from torch's random numbers, which a model's dropout depends on.
    """
    workers = min(workers, len(os.sched_getaffinity(0)))
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=dataset.collater,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    """torchrun, SLURM and terminals signal all processes; batches are needed to the end.

    Only the parent's SIGTERM ends a worker: Python sends it at exit, and waits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def sound(batches: Iterable[FusionSamples | DataFault]) -> Iterator[FusionSamples]:
    """The batches of a loader. Raises UserError at the first that its workers could not make."""
    for batch in batches:
        if isinstance(batch, DataFault):
            raise UserError(batch.message)
        yield batch


def to_device(samples: FusionSamples, device: torch.device) -> FusionSamples:
    """The batch with its tensors on ``device``, but for those that shapes depend on."""
    return {  # type: ignore[return-value]
        name: value.to(device, non_blocking=True)
        if isinstance(value, torch.Tensor) and name not in ON_HOST
        else value
        for name, value in samples.items()
    }


ON_HOST = ("image_index",)
"""Reading it from a GPU, to pack questions by it, would wait for all that the GPU has to do."""
