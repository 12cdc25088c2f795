"""A data loader that survives the loss of its workers."""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from lavis_ext.datasets.forks import Stacks, is_asleep, wait_for_idle_threads

log = logging.getLogger(__name__)

SETTLED = 100
"""Batches after which an earlier loss of workers no longer counts."""
END_SECONDS = 2.0
"""Seconds to wait for a killed worker to end."""
LOOK_SECONDS = 1.0
"""Interval between looks at the workers while a batch is awaited."""
LOOKS = 4
"""Looks that find a new worker asleep, after which it counts as hanging. Starting takes no wait."""
PR_SET_PDEATHSIG = 1
# Resolved before any fork: in a child, the dynamic linker's lock may be held by a lost thread.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class LostWorkers(Exception):
    """Raised for dead or stalled workers.

    ``advice`` is shown if it happens repeatedly. ``stacks`` says where stalled workers were.
    """

    def __init__(self, message: str, advice: str, stacks: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        self.stacks = stacks


class Loader(Iterable[Any]):
    """Loads batches in a sampler's order, replacing dead or stalled workers.

    New workers continue with the next batch. So the sampler must yield the same batches on each
    pass, and a data set's randomness may depend only on the contents of a batch. The loader doesn't
    use torch's global generator, which dropout uses.

    Args:
        dataset: a data set with ``__getitems__``, ``collater`` and ``images``, indexed with the
            sampler's items.
        batches: the sampler.
        workers: loader processes, capped at the number of cores; 0 loads in this process.
        faults: the section ``run.data_faults``.
        persistent: whether to keep the workers between passes.

    Iterating raises UserError for a data set's error, and for workers that die or stall
    repeatedly.
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
            workers = self._workers or self._new_workers(given)
            # The replacement iterates over the rest of this pass.
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
                self._continue_or_raise(lost, losses, given)

    def _continue_or_raise(self, lost: LostWorkers, losses: int, given: int) -> None:
        rank = f"rank {distributed.rank()}: " if distributed.world_size() > 1 else ""
        if lost.stacks:
            log.warning("%sloader workers that bring nothing:\n%s", rank, lost.stacks)
        if losses > self._faults.retries:
            times = f", {losses} times in a row" if losses > 1 else ""
            raise UserError(f"{lost}{times} (run.data_faults.retries). {lost.advice}") from None
        log.warning(
            "%s%s; new loader workers continue with batch %d of this pass (%d of at most %d times)",
            rank,
            lost,
            given + 1,
            losses,
            self._faults.retries,
        )

    def _new_workers(self, past: int) -> "_Workers":
        """Workers that load all batches after the first ``past``."""
        settled = multiprocessing.RawArray("i", max(self._processes, 1))
        loader = DataLoader(
            self._dataset,
            batch_sampler=_Rest(self._batches, past),
            collate_fn=self._dataset.collater,
            num_workers=self._processes,
            persistent_workers=self._persistent and not past,
            pin_memory=torch.cuda.is_available(),
            timeout=self._faults.stall_seconds if self._processes else 0,
            worker_init_fn=partial(_settle_in, os.getpid(), settled),
            generator=torch.Generator(),
        )
        return _Workers(loader, settled)


class _Rest:
    """A sampler that skips its first batches."""

    def __init__(self, batches: Iterable[Any], past: int) -> None:
        self._batches = batches
        self._past = past

    def __iter__(self) -> Iterator[Any]:
        return islice(self._batches, self._past, None)


class _Workers:
    """torch's loader with its processes. Iterating raises LostWorkers.

    Args:
        loader: the loader.
        settled: process ids of the workers that have started, written by them.
    """

    def __init__(self, loader: DataLoader[Any], settled: Sequence[int]) -> None:
        self._loader = loader
        self._settled = settled
        self._iterator: Any = None
        self._processes: list[BaseProcess] = []
        self._asleep: dict[int, int] = {}
        self._stacks = Stacks()
        if not _started:
            atexit.register(_abandon_all)
        _started.add(self)

    def __iter__(self) -> Iterator[Any]:
        with self._losses_raised():
            if self._iterator is None:
                self._start()
            else:
                self._wait_at_most(self._loader.timeout)  # for the workers' answers
                iter(self._loader)
        _Deaths.heed()
        self._wait_at_most(min(LOOK_SECONDS, self._loader.timeout))
        while (batch := self._next()) is not None:
            yield batch

    def _start(self) -> None:
        others = multiprocessing.active_children()
        if self._loader.num_workers:
            wait_for_idle_threads()
        try:
            with self._stacks.inherited():
                self._iterator = iter(self._loader)
        finally:
            self._processes += set(multiprocessing.active_children()).difference(others)

    def _wait_at_most(self, seconds: float) -> None:
        if self._processes:
            self._iterator._timeout = seconds

    def _next(self) -> Any:
        """The next batch; None at the end."""
        asked = time.monotonic()
        while True:
            with self._losses_raised():
                try:
                    return next(self._iterator, None)
                except RuntimeError as error:
                    if not str(error).startswith("DataLoader timed out"):
                        raise
            self._check_starts()
            if time.monotonic() - asked >= self._loader.timeout:
                raise LostWorkers(*self._stalled())

    def abandon(self) -> None:
        """Kill the processes without letting torch wait for them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(END_SECONDS)
        # A killed process may hold locks of torch's queues or have written half of a batch; torch
        # would wait for it when the iterator is deleted.
        if self._processes and self._iterator is not None:
            self._iterator._shutdown = True
            if getattr(self._iterator, "_worker_pids_set", False):
                # torch stores them by the iterator's id, which a later one may reuse.
                signal_handling._remove_worker_pids(id(self._iterator))
                self._iterator._worker_pids_set = False
            if done := getattr(self._iterator, "_pin_memory_thread_done_event", None):
                done.set()

    @contextmanager
    def _losses_raised(self) -> Iterator[None]:
        self._check_alive()
        _Deaths.awaited = self._processes
        try:
            yield
        except RuntimeError as error:
            self._check_alive()
            if str(error).startswith("DataLoader timed out"):  # at the start of a pass
                raise LostWorkers(*self._stalled()) from None
            raise
        finally:
            _Deaths.awaited = ()

    def _check_alive(self) -> None:
        for process in self._processes:
            if process.exitcode is not None:
                raise LostWorkers(*_death(process)) from None

    def _check_starts(self) -> None:
        """Raise LostWorkers for a forked process that waits for a lock of a lost thread."""
        for process in self._processes:
            pid = process.pid or 0
            waits = pid not in self._settled and is_asleep(pid)
            self._asleep[pid] = self._asleep.get(pid, 0) + 1 if waits else 0
            if self._asleep[pid] >= LOOKS:
                raise LostWorkers(
                    f"a new loader worker (process {pid}) hangs before its start",
                    "Python before 3.11.10 has a fault of that kind (gh-112275); "
                    "run.num_workers=0 loads without workers.",
                    self._stacks.text([pid]),
                )

    def _stalled(self) -> tuple[str, str, str]:
        folder = cast(Any, self._loader.dataset).images.folder
        return (
            f"{folder}: no batch of its images was loaded for {self._loader.timeout:g} s",
            "Check whether that folder, or the one of stored features, still responds; if it is "
            "only slow, increase run.data_faults.stall_seconds.",
            self._stacks.text([process.pid or 0 for process in self._processes]),
        )


_started: "WeakSet[_Workers]" = WeakSet()


def _abandon_all() -> None:
    """Kill all workers at exit; Python would wait forever for one stuck in a network folder."""
    for workers in list(_started):
        workers.abandon()


class _Deaths:
    """A SIGCHLD handler that raises for a dead worker only while a batch of it is awaited.

    torch's handler raises anywhere in the main thread, even in a step or while a state is written,
    and for another loader's worker, which that loader replaces when it is used again.
    """

    awaited: ClassVar[Sequence[BaseProcess]] = ()

    def __init__(self, torchs: Callable[[int, FrameType | None], Any]) -> None:
        self._torchs = torchs

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if any(map(_has_failed, _Deaths.awaited)):
            self._torchs(signum, frame)

    @classmethod
    def heed(cls) -> None:
        """Wrap torch's handler, which torch installs with the first worker."""
        handler = signal.getsignal(signal.SIGCHLD)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and callable(handler) and not isinstance(handler, cls):
            signal.signal(signal.SIGCHLD, cls(handler))


def _has_failed(process: BaseProcess) -> bool:
    """Whether a child was killed or ended with an error; its exit code stays to be asked for.

    True where unknown. A worker that ends well at the end of a pass hasn't failed.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return True
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        ended = os.waitid(os.P_PID, process.pid or 0, flags)
    except ChildProcessError:  # it has been asked for
        return process.exitcode not in (None, 0)
    return ended is not None and (ended.si_code != os.CLD_EXITED or ended.si_status != 0)


def _death(process: BaseProcess) -> tuple[str, str]:
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    advice = {
        -signal.SIGKILL: "The machine probably ran out of memory: lower run.num_workers or "
        "run.batch_size_train, or give the job more memory.",
        -signal.SIGBUS: "Shared memory (/dev/shm) is full, or a feature store is truncated: lower "
        "run.num_workers, or check the stores with lavis_ext.features.extract --verify.",
    }.get(code, "See its message above; run.num_workers=0 loads without workers.")
    return f"a loader worker (process {process.pid}) {how}", advice


def _settle_in(parent: int, settled: Any, worker: int) -> None:
    """Ignore signals to the whole process group, because batches are needed until the end.

    torchrun, SLURM and terminals send such signals. Only the parent's SIGTERM ends a worker; Python
    sends it at exit. The kernel kills a worker when its parent dies, even in a blocking call.
    """
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _prctl:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    settled[worker] = os.getpid()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
