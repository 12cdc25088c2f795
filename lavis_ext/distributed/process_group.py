"""The process group: its start, collectives and end. Every rank calls every collective."""

import datetime
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lavis_ext.common.errors import UserError, exit_with
from lavis_ext.distributed.peers import FIRST_SECONDS, GRACE_SECONDS, Peers, Stage, end_within
from lavis_ext.distributed.watchdog import Standing, Watchdog

Item = TypeVar("Item")
ERROR_SECONDS = 60.0
"""Seconds to wait for the other processes after an error before there is a process group."""


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine; 0 is the one that acts for the machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """The number of processes on this machine, which share its memory and cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this is rank 0, which writes the run's files."""
    return rank() == 0


def choose_device(name: str) -> torch.device:
    """The named device; ``auto`` is this process's GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "run.device is cuda, but torch finds no CUDA device; use run.device=auto or cpu."
            )
        return torch.device("cuda", local_rank())
    return torch.device(name)


class _Job:
    """Peers and watchdog of the current process group."""

    peers: Peers | None = None
    watchdog: Watchdog | None = None


def at(stage: Stage, step: int) -> None:
    """Report the stage that this process enters to the watchdog and the other ranks."""
    if _Job.watchdog is not None:
        _Job.watchdog.progress(stage, step)


def standings() -> list[Standing]:
    """What each process is at, as last heard by this one; empty without ``process_group``."""
    return _Job.watchdog.standings() if _Job.watchdog is not None else []


def is_broken() -> bool:
    """Whether a process of the job has failed, so that collectives can't complete."""
    return _Job.peers is not None and _Job.peers.broken


@contextmanager
def process_group(
    device: torch.device, timeout_minutes: float, watchdog_seconds: float
) -> Iterator[None]:
    """Context manager for a process group: gloo, plus nccl for GPUs; none for a single process.

    Reads torchrun's environment variables, on one or several machines. The group ends with the
    block, also after a SystemExit of all ranks. An error of one rank ends all: the first to fail
    prints its error, every other rank a line with the reason.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        with Watchdog(watchdog_seconds, None) as _Job.watchdog:
            yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, own_rank, size = _store(timeout)
    host = None if _store_is_agents() else 0
    peers = _Job.peers = Peers(own_rank, size, store, host)
    with Watchdog(watchdog_seconds, peers) as _Job.watchdog:
        try:
            _init(device, store, own_rank, size, timeout)
            yield
            barrier()
        except SystemExit:
            peers.leave()
            dist.destroy_process_group()
            raise
        except BaseException as error:
            _end_with(error, peers, _Job.watchdog, timeout_minutes)
        peers.leave()
    dist.destroy_process_group()


@contextmanager
def errors_once() -> Iterator[None]:
    """Context manager for work of every process before there is a process group.

    Of several processes with the same UserError only one shows it; the others exit with its code in
    silence.
    """
    try:
        yield
    except UserError as error:
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        with _first_of(str(error)) as first:
            if first:
                exit_with(error)
            time.sleep(FIRST_SECONDS)  # torchrun ends the others once a process has ended
            raise SystemExit(2) from None


@contextmanager
def _first_of(message: str) -> Iterator[bool]:
    """Whether no other process has had this error before; True without a reachable store.

    At the end the process that holds the store waits until the others have asked.
    """
    digest = hashlib.sha256(message.encode(errors="replace"))  # it may name a file that is no text
    key = f"errors/{digest.hexdigest()}"
    try:
        store, own_rank, size = _store(datetime.timedelta(seconds=ERROR_SECONDS))
        count = store.add(key, 1)
    except (RuntimeError, ValueError):  # no store, or an environment without its address
        yield True
        return
    try:
        yield count == 1
    finally:
        hosts = own_rank == 0 and not _store_is_agents()
        deadline = time.monotonic() + ERROR_SECONDS
        while hosts and store.add(key, 0) < size and time.monotonic() < deadline:
            time.sleep(0.05)


def _store_is_agents() -> bool:
    """Whether torchrun's agent holds the job's store, rather than rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """The job's store, this process's rank and the number of processes."""
    store, own_rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # After a restart torchrun's store still has the addresses of the dead processes, which a
        # fast process would mistake for new ones. Every machine counts restarts separately.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart_{restart}", store)
    return store, own_rank, size


def _init(
    device: torch.device,
    store: dist.Store,
    own_rank: int,
    size: int,
    timeout: datetime.timedelta,
) -> None:
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=own_rank,
        world_size=size,
        timeout=timeout,
    )


def _end_with(
    error: BaseException, peers: Peers, watchdog: Watchdog, timeout_minutes: float
) -> NoReturn:
    """End this process after ``error``, its own or the result of another's failure."""
    # Collectives raise RuntimeError, but so does the CUDA allocator.
    lost = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    first = peers.first_end() if lost else None
    if first is None:
        if lost and "timed out" in str(error).lower():
            error = UserError(
                f"{watchdog.describe()}. This process ends: it waits at most "
                f"{timeout_minutes:g} minutes for the others (run.process_group_timeout_minutes)."
            )
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        first = peers.end(reason)
        lost = lost or first == (first.rank, reason)
    end_within(GRACE_SECONDS)
    if first.rank != peers.rank and lost:
        peers.wait_for_announcement()
        peers.keep_store()
        sys.stdout.flush()
        # On a normal exit torch would try to close connections to dead processes.
        os._exit(2 if isinstance(error, UserError) else 1)
    # torchrun shows this file's content as the root cause in its summary.
    in_short = error.with_traceback(None) if isinstance(error, UserError) else error
    try:
        raise in_short
    except BaseException:
        get_error_handler().record_exception(error)
    try:
        exit_with(error)
    finally:
        peers.keep_store()


def barrier() -> None:
    """Wait for all processes; no-op without a process group."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Context manager that runs its block in the main process before the others."""
    if not is_main_process():
        barrier()
    try:
        yield
    finally:
        # Release the others after an error, too.
        if is_main_process():
            barrier()


def gather(items: list[Item]) -> list[Item]:
    """The items of all processes in rank order, the same list in each."""
    if world_size() == 1:
        return items
    gathered: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def from_main_process(make: Callable[[], Item]) -> Item:
    """Call ``make`` in the main process alone and return its result, or UserError, in each."""
    item, fault = None, None
    if is_main_process():
        try:
            item = make()
        except UserError as error:
            fault = str(error)
    item, fault = broadcast((item, fault))
    if fault is not None:
        raise UserError(fault)
    return item  # type: ignore[return-value]


def from_shared_file(path: Path, load: Callable[[Path], Item]) -> Item:
    """Load a file of the main process in every process, or its UserError.

    Where another machine doesn't have the file, the main process sends the content to all.
    """
    (lacking,) = greatest([int(not path.is_file())])
    return from_main_process(lambda: load(path)) if lacking else load(path)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, in each of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def greatest(values: list[int]) -> list[int]:
    """Elementwise maximum of ``values`` over all processes, without waiting for a device."""
    if world_size() == 1:
        return values
    on_host = torch.tensor(values)
    dist.all_reduce(on_host, op=dist.ReduceOp.MAX)
    return on_host.tolist()


def broadcast(item: Item) -> Item:
    """The main process's ``item``, in every process."""
    if world_size() == 1:
        return item
    holder = [item]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]
