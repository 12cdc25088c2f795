"""Batches from loader workers to the device, whatever becomes of the workers."""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, ClassVar, cast
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.base import DataFault
from lavis_ext.datasets.faults import DataFaultsConfig

log = logging.getLogger(__name__)

SETTLED = 100
"""Batches after which an earlier fault of the workers counts no longer."""
END_SECONDS = 2.0
"""How long a worker that is killed may take to be gone."""
PR_SET_PDEATHSIG = 1
# Found before any fork: in a child, another thread's lock of the dynamic linker may never open.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class LostWorkers(Exception):
    """Workers from which no batch will come any more. ``advice`` is for one who meets it often."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


class Loader(Iterable[Any]):
    """Batches of a data set, in the order of a sampler, that come whatever the workers meet.

    Where a worker dies, or no batch comes for long, new workers go on with the batch that is due.
    So the sampler has to give the same each time, and a data set's randomness must follow what is
    in a batch. Nothing is drawn from torch's random numbers, which a model's dropout depends on.

    Args:
        dataset: a data set with ``__getitems__``, ``collater`` and ``images``, which is indexed
            with what the sampler gives.
        batches: the sampler.
        workers: processes that load, but no more than there are cores; 0 to load in this one.
        faults: the section ``run.data_faults``.
        persistent: whether the workers live on from one pass to the next.

    Iterating raises UserError for a batch that the data set could not make, and for workers that
    die or stall again and again.
    """

    def __init__(
        self,
        dataset: Any,
        batches: Iterable[Any],
        workers: int,
        faults: DataFaultsConfig,
        *,
        persistent: bool = False,
    ) -> None:
        self._dataset = dataset
        self._batches = batches
        self._processes = min(workers, len(os.sched_getaffinity(0)))
        self._faults = faults
        self._persistent = persistent and self._processes > 0
        self._workers: _Workers | None = None

    def __iter__(self) -> Iterator[Any]:
        given, faultless, losses = 0, 0, 0
        while True:
            workers = self._workers or _Workers(self._torch_loader(given))
            # Those that go on in the middle have a sampler of their own, for the rest of this pass.
            self._workers = workers if self._persistent and not given else None
            try:
                for batch in workers:
                    if isinstance(batch, DataFault):
                        raise UserError(batch.message)
                    given, faultless = given + 1, faultless + 1
                    yield batch
                return
            except LostWorkers as lost:
                workers.abandon()
                self._workers = None
                losses = losses + 1 if faultless < SETTLED else 1
                faultless = 0
                self._go_on_or_give_up(lost, losses, given)

    def _go_on_or_give_up(self, lost: LostWorkers, losses: int, given: int) -> None:
        if losses > self._faults.retries:
            times = f", {losses} times in a row" if losses > 1 else ""
            raise UserError(f"{lost}{times} (run.data_faults.retries). {lost.advice}") from None
        log.warning(
            "%s%s; new loader workers go on with batch %d of this pass (%d of at most %d times)",
            f"rank {distributed.rank()}: " if distributed.world_size() > 1 else "",
            lost,
            given + 1,
            losses,
            self._faults.retries,
        )

    def _torch_loader(self, past: int) -> DataLoader[Any]:
        """One without the batches that are ``past``."""
        return DataLoader(
            self._dataset,
            batch_sampler=_Rest(self._batches, past),
            collate_fn=self._dataset.collater,
            num_workers=self._processes,
            persistent_workers=self._persistent and not past,
            pin_memory=torch.cuda.is_available(),
            timeout=self._faults.stall_seconds if self._processes else 0,
            worker_init_fn=partial(_settle_in, os.getpid()),
            generator=torch.Generator(),
        )


class _Rest:
    """A sampler's batches but for the first ones."""

    def __init__(self, batches: Iterable[Any], past: int) -> None:
        self._batches = batches
        self._past = past

    def __iter__(self) -> Iterator[Any]:
        return islice(self._batches, self._past, None)


class _Workers:
    """torch's loader and the processes that it has started. Iterating raises LostWorkers."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._iterator: Any = None
        self._processes: list[BaseProcess] = []
        if not _started:
            atexit.register(_abandon_all)
        _started.add(self)

    def __iter__(self) -> Iterator[Any]:
        with self._losses_raised():
            others = multiprocessing.active_children()
            try:
                self._iterator = iter(self._loader)
            finally:
                self._processes += set(multiprocessing.active_children()).difference(others)
        _Deaths.heed()
        while True:
            with self._losses_raised():
                batch = next(self._iterator, None)
            if batch is None:
                return
            yield batch

    def abandon(self) -> None:
        """Kill the processes, and let torch wait for none of them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(END_SECONDS)
        # A process that is killed may hold the locks of torch's queues, or have written half of a
        # batch; what torch does at an iterator's end would wait for it.
        if self._processes and self._iterator is not None:
            self._iterator._shutdown = True
            if getattr(self._iterator, "_worker_pids_set", False):
                # torch keeps them by the iterator's address, which a later one may get.
                signal_handling._remove_worker_pids(id(self._iterator))
                self._iterator._worker_pids_set = False
            if done := getattr(self._iterator, "_pin_memory_thread_done_event", None):
                done.set()

    @contextmanager
    def _losses_raised(self) -> Iterator[None]:
        self._refuse_dead()
        _Deaths.awaited = True
        try:
            yield
        except RuntimeError as error:
            self._refuse_dead()
            if str(error).startswith("DataLoader timed out"):
                raise LostWorkers(*self._stalled()) from None
            raise
        finally:
            _Deaths.awaited = False

    def _refuse_dead(self) -> None:
        for process in self._processes:
            if process.exitcode is not None:
                raise LostWorkers(*_death(process)) from None

    def _stalled(self) -> tuple[str, str]:
        folder = cast(Any, self._loader.dataset).images.folder
        return (
            f"{folder}: no batch has come from its images for {self._loader.timeout:g} s",
            "Look whether that folder, or the one of stored features, still answers; if it is only "
            "slow, raise run.data_faults.stall_seconds.",
        )


_started: "WeakSet[_Workers]" = WeakSet()


def _abandon_all() -> None:
    """Python waits at its end for workers, also for one that a network folder holds up."""
    for workers in list(_started):
        workers.abandon()


class _Deaths:
    """torch raises a worker's death wherever the main thread is: in a step, in writing a state.

    Here it is raised where batches are waited for; elsewhere it is found out later.
    """

    awaited: ClassVar[bool] = False

    def __init__(self, torchs: Callable[[int, FrameType | None], Any]) -> None:
        self._torchs = torchs

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if _Deaths.awaited:
            self._torchs(signum, frame)

    @classmethod
    def heed(cls) -> None:
        """Stand before torch's handler, which it sets with its first worker."""
        handler = signal.getsignal(signal.SIGCHLD)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and callable(handler) and not isinstance(handler, cls):
            signal.signal(signal.SIGCHLD, cls(handler))


def _death(process: BaseProcess) -> tuple[str, str]:
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    advice = {
        -signal.SIGKILL: "A machine that runs out of memory kills so: lower run.num_workers or "
        "run.batch_size_train, or give the job more memory.",
        -signal.SIGBUS: "Shared memory (/dev/shm) is full, or a store of features was cut short: "
        "lower run.num_workers, or check the stores with lavis_ext.features.extract --verify.",
    }.get(code, "Its own message stands above; run.num_workers=0 loads without workers.")
    return f"a loader worker (process {process.pid}) {how}", advice


def _settle_in(parent: int, worker: int) -> None:
    """torchrun, SLURM and terminals signal all processes; batches are needed to the end.

    Only the parent's SIGTERM ends a worker: Python sends it at exit, and waits. With the parent's
    own end it is killed, whatever it is waiting for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _prctl:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
