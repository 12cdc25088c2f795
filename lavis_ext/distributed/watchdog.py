"""Warns when a rank stalls, naming the rank, its step and the rank it waits for."""

import logging
import threading
import time
from typing import NamedTuple, Self

from lavis_ext.distributed.peers import At, Peers, Stage

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Standing(NamedTuple):
    """What a rank is at, such as ``computing step 7``, and for how many seconds."""

    rank: int
    doing: str
    seconds: float


class Watchdog:
    """Context manager that logs warnings. It never ends a process and doesn't slow down steps.

    Rank 0 warns for all processes; another rank warns only if rank 0 is silent.

    Args:
        seconds: time without progress before a warning, and between repeated ones.
        peers: the other processes; None for a single process.
    """

    def __init__(self, seconds: float, peers: Peers | None) -> None:
        self._seconds = seconds
        self._peers = peers
        self._at = At(since=time.monotonic())
        self._stopped = threading.Event()

    def progress(self, stage: Stage, step: int) -> None:
        """Record that this process has entered a stage."""
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
                log.warning("%s", self.describe())

    def _speaks(self) -> bool:
        others = self._peers
        return others is None or others.rank == 0 or others.silent(0) >= self._seconds

    def standings(self) -> list[Standing]:
        """What each rank is at, as last heard."""
        now = time.monotonic()
        own = self._peers.rank if self._peers else 0
        at = {own: self._at}
        at |= {rank: each.at for rank, each in (self._peers.heard() if self._peers else {}).items()}
        return [Standing(rank, str(each), now - each.since) for rank, each in sorted(at.items())]

    def describe(self) -> str:
        """Text of a warning: this process's progress, and the ranks it waits for."""
        at = self._at
        who = f"rank {self._peers.rank}" if self._peers else "this process"
        line = f"{who} has been {at} for {time.monotonic() - at.since:.0f} s"
        behind = self._peers.behind() if self._peers else {}
        if self._peers and self._peers.rank in behind:
            return f"{line}; the other processes wait for it"
        if behind:
            others = ", ".join(f"rank {rank}, which {heard}" for rank, heard in behind.items())
            return f"{line}, waiting for {others}"
        heard = self._peers.heard() if self._peers else {}
        return "; ".join([line, *(f"rank {rank} {each}" for rank, each in heard.items())][:4])
