"""Processes that train together: start, collect, end. Every collective is entered by every rank."""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from lavis_ext.errors import UserError

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


@contextmanager
def process_group(device: torch.device, timeout_minutes: float) -> Iterator[None]:
    """The process group for the time of the block: gloo, nccl for what is on GPUs, none for one.

    torchrun sets the environment that is read here, on one machine or several. The group is ended
    at the end of the block, and where all ranks leave it together by SystemExit. After an error it
    is not: the other ranks don't come, and torchrun ends them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, own_rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # After a restart torchrun's store still has the addresses of the processes that died, and
        # who is quick takes them for the new ones. Of several machines each counts for itself.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart_{restart}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=own_rank,
        world_size=size,
        timeout=timeout,
    )
    try:
        yield
    except SystemExit:
        dist.destroy_process_group()
        raise
    barrier()
    dist.destroy_process_group()


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
