"""Warns when a rank stalls, naming the rank, its step and the rank it waits for."""

import logging
import threading
import time
from typing import Self

from lavis_ext.distributed.peers import At, Peers, Stage

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Watchdog:
    """Warns for the time of its block. It ends nothing, and costs a step nothing.

    Of several processes rank 0 speaks for all; another one speaks where rank 0 can't.

    Args:
        seconds: without progress, after which there is a warning, and after as many again another.
        peers: the other processes; None for one process.
    """

    def __init__(self, seconds: float, peers: Peers | None) -> None:
        self._seconds = seconds
        self._peers = peers
        self._at = At(since=time.monotonic())
        self._stopped = threading.Event()

    def progress(self, stage: Stage, step: int) -> None:
        """This process has begun something."""
        self._at = At(step, stage, time.monotonic())
        if self._peers is not None:
            self._peers.at = self._at

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        warned = self._at, 0
        while not self._stopped.wait(min(LOOK_SECONDS, self._seconds / 2)):
            at = self._at
            times = int((time.monotonic() - at.since) / self._seconds)
            if times and (at, times) != warned and self._speaks():
                warned = at, times
                log.warning("%s", self.told())

    def _speaks(self) -> bool:
        others = self._peers
        return others is None or others.rank == 0 or others.silent(0) >= self._seconds

    def told(self) -> str:
        """What there is to say about this process, and about those that hold it up."""
        at = self._at
        who = f"rank {self._peers.rank}" if self._peers else "this process"
        told = f"{who} has been {at} for {time.monotonic() - at.since:.0f} s"
        behind = self._peers.behind() if self._peers else {}
        if self._peers and self._peers.rank in behind:
            return f"{told}; the other processes wait for it"
        if behind:
            others = ", ".join(f"rank {rank}, which {heard}" for rank, heard in behind.items())
            return f"{told}, waiting for {others}"
        heard = self._peers.heard() if self._peers else {}
        return "; ".join([told, *(f"rank {rank} {each}" for rank, each in heard.items())][:4])
