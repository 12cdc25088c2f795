"""Processes that train together: start, collect, end. Every collective is entered by every rank."""

import datetime
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lavis_ext.common.errors import UserError, exit_with
from lavis_ext.distributed.peers import GRACE_SECONDS, Peers, Stage, end_within
from lavis_ext.distributed.watchdog import Watchdog

Item = TypeVar("Item")


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes the run's files."""
    return rank() == 0


def choose_device(name: str) -> torch.device:
    """``auto``: this process's GPU if there is one, else the CPU; otherwise the named device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "run.device is cuda, but torch finds no CUDA device; use run.device=auto or cpu."
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device(name)


class _Job:
    """What a process knows of the job that it is part of, for the time of its process group."""

    peers: Peers | None = None
    watchdog: Watchdog | None = None


def at(stage: Stage, step: int) -> None:
    """Tell the watchdog and the other processes what this one begins."""
    if _Job.watchdog is not None:
        _Job.watchdog.progress(stage, step)


def is_broken() -> bool:
    """Whether a process of the job has ended, so that no collective will be complete any more."""
    return _Job.peers is not None and _Job.peers.broken


@contextmanager
def process_group(
    device: torch.device, timeout_minutes: float, watchdog_seconds: float
) -> Iterator[None]:
    """The process group for the time of the block: gloo, nccl for what is on GPUs, none for one.

    torchrun sets the environment that is read here, on one machine or several. The group is ended
    at the end of the block, and where all ranks leave it together by SystemExit. After an error of
    one rank all end: the first one to fail shows its error, the others say in a line why they end.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        with Watchdog(watchdog_seconds, None) as _Job.watchdog:
            yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, own_rank, size = _store(timeout)
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    peers = _Job.peers = Peers(own_rank, size, store, host=None if agents else 0)
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


def _store(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """The job's store, this process's rank and the number of processes."""
    store, own_rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # After a restart torchrun's store still has the addresses of the processes that died, and
        # who is quick takes them for the new ones. Of several machines each counts for itself.
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
    """End this process because of ``error``: its own, or what the end of another has caused."""
    # What a collective raises; the CUDA allocator's error is one of these by its type alone.
    lost = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    first = peers.first_end() if lost else None
    if first is None:
        if lost and "timed out" in str(error).lower():
            error = UserError(
                f"{watchdog.told()}. No process waits longer than {timeout_minutes:g} minutes for "
                "the others (run.process_group_timeout_minutes); this one ends."
            )
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        first = peers.end(reason)
        lost = lost or first == (first.rank, reason)
    end_within(GRACE_SECONDS)
    if first.rank != peers.rank and lost:
        peers.wait_until_told()
        peers.keep_store()
        sys.stdout.flush()
        # At Python's end torch would take down connections to processes that aren't there.
        os._exit(2 if isinstance(error, UserError) else 1)
    # torchrun shows this file's content in its summary, as the root cause.
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
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process goes through the block before the others enter it."""
    if not is_main_process():
        barrier()
    try:
        yield
    finally:
        # In an error the others must not wait for ever either.
        if is_main_process():
            barrier()


def gather(items: list[Item]) -> list[Item]:
    """The items of all processes in the order of the ranks, the same list in each."""
    if world_size() == 1:
        return items
    gathered: list[list[Item]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def from_main_process(make: Callable[[], Item]) -> Item:
    """What ``make`` returns in the main process, in each process; its UserError is raised in each.

    The other processes don't call it.
    """
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


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, in each of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def greatest(values: list[int]) -> list[int]:
    """The greatest of each of ``values`` over all processes. No device is waited for."""
    if world_size() == 1:
        return values
    on_host = torch.tensor(values)
    dist.all_reduce(on_host, op=dist.ReduceOp.MAX)
    return on_host.tolist()


def broadcast(item: Item) -> Item:
    """The main process's ``item``, in each process."""
    if world_size() == 1:
        return item
    holder = [item]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]
