"""The other ranks of a job: their progress, and the first one to end.

A thread of each rank writes a heartbeat to the job's store twice a second and reads those of the
others, which takes 0.1 ms for 64 ranks on one machine. The training thread only sets
:attr:`Peers.at`.

A failing rank writes its error to the store before it ends, so that all ranks agree on the first
error. A killed rank is detected in one of these ways:

- its heartbeats stop: for 30 s, or for 2 s after a failed collective of the observing rank.
- the store is gone, if rank 0 held it. Under torchrun the agent holds the store; it
  also sends SIGTERM to the ranks of its machine when one of them has ended.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from torch.distributed import PrefixStore, Store

BEAT_SECONDS = 0.5
MISSED_BEATS = 60
"""A rank or store is considered dead after this many of our own heartbeats without one of its own.
They are counted rather than timed, so that a suspended rank doesn't blame the others."""
MISSED_BEATS_AFTER_FAILURE = 4
"""Lower limit after a failed collective."""
NEWS_SECONDS = 4.0
"""Seconds to wait after a failed collective to learn which rank has ended."""
SILENT_SECONDS = 10.0
"""Seconds of silence after which warnings report a rank's last heartbeat."""
FIRST_SECONDS = 1.0
"""Head start of the first rank to end, so that its error is printed first."""
GRACE_SECONDS = 10.0
"""Seconds for a rank to end by itself after another has ended."""
FIRST_END = "first_end"


class Stage(IntEnum):
    """Stages of a rank's work, in the order of a step."""

    STARTING = 0
    STORING = 1
    LOADING = 2
    COMPUTING = 3
    EVALUATING = 4
    SAVING = 5
    ENDING = 6


STARTING, STORING, LOADING, COMPUTING, EVALUATING, SAVING, ENDING = Stage
PHRASES = {
    STARTING: "starting",
    STORING: "storing features",
    LOADING: "loading data for step {}",
    COMPUTING: "computing step {}",
    EVALUATING: "evaluating at step {}",
    SAVING: "saving the state of step {}",
    ENDING: "ending at step {}",
}


class At(NamedTuple):
    """A rank's progress. Tuples compare by progress. ``since`` is monotonic time."""

    step: int = 0
    stage: Stage = STARTING
    since: float = 0.0

    def __str__(self) -> str:
        return PHRASES[self.stage].format(self.step)


class Ended(NamedTuple):
    """The first rank to end, and its error, empty if it was killed.

    ``rank`` is None for torchrun's agent, which holds the store.
    """

    rank: int | None
    reason: str

    def __str__(self) -> str:
        if self.rank is None:
            return "torchrun has ended on the first machine, with the job's store"
        how = f"({self.reason})" if self.reason else "without an error, as if killed"
        return f"rank {self.rank} has ended {how}"


class Heard(NamedTuple):
    """Another rank's progress at its last heartbeat, and the heartbeat's monotonic time."""

    at: At
    when: float

    def __str__(self) -> str:
        now = time.monotonic()
        silent = now - self.when
        if silent < SILENT_SECONDS:
            return f"has been {self.at} for {now - self.at.since:.0f} s"
        return f"was {self.at} at its last heartbeat, {silent:.0f} s ago"


@dataclass
class _Beats:
    """Heartbeats of another rank.

    Attributes:
        value: last heartbeat as stored; empty before the first.
        missed: our own heartbeats since the last one.
        done: whether the rank may end at any time, having left or noticed a failure.
    """

    value: bytes = b""
    missed: int = 0
    done: bool = False
    heard: Heard | None = None

    def take(self, value: bytes) -> None:
        """Record a new heartbeat, or count a missed one."""
        if value == self.value:
            self.missed += bool(value)
            return
        now = time.monotonic()
        _, step, stage, seconds, self.done = json.loads(value)
        self.heard = Heard(At(step, Stage(stage), now - seconds), now)
        self.value, self.missed = value, 0


class Peers:
    """One rank's view of the ranks of its job.

    Args:
        rank, world_size: this rank, and the number of ranks.
        store: the job's store.
        host: the rank that holds the store; None if torchrun's agent does.

    Attributes:
        at: this rank's progress, set on every change.
        ended: first rank to end without :meth:`leave`.
    """

    def __init__(self, rank: int, world_size: int, store: Store, host: int | None) -> None:
        self.rank, self.host = rank, host
        self.at = At(since=time.monotonic())
        self.ended: Ended | None = None
        self._others = {each: _Beats() for each in range(world_size) if each != rank}
        self._beats = 0
        self._collective_failed = False
        self._failing = False
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._left, self._news, self._announced = (threading.Event() for _ in range(3))
        # On several machines, torchrun's store keeps its contents across restarts.
        start = store.add(f"peers/{rank}/starts", 1)
        # A separate client, since a blocking read by the process group would delay heartbeats.
        own: Any = PrefixStore(f"peers/{start}", store)  # some releases' types lack clone
        self._store = own.clone()
        self._keys = [*map(str, self._others), FIRST_END]
        for key in self._keys:
            self._store.compare_set(key, "", "")  # reading an absent key would block
        threading.Thread(target=self._exchange_beats, name="peers", daemon=True).start()
        threading.Thread(target=self._watch_store, name="peers' store", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether a rank has ended, so that collectives can't complete."""
        return self.ended is not None or self._collective_failed

    def heard(self) -> dict[int, Heard]:
        """Last heartbeats of all other ranks that have started."""
        return {rank: beats.heard for rank, beats in self._others.items() if beats.heard}

    def behind(self) -> dict[int, Heard]:
        """The ranks that are furthest behind; none if all are equal."""
        known = {**self.heard(), self.rank: Heard(self.at, time.monotonic())}
        least = min(each.at[:2] for each in known.values())
        found = {rank: each for rank, each in sorted(known.items()) if each.at[:2] == least}
        return found if len(found) < len(known) else {}

    def silent(self, rank: int) -> float:
        """Seconds since the last heartbeat of another rank."""
        heard = self._others[rank].heard
        return time.monotonic() - heard.when if heard else 0.0

    def first_end(self) -> Ended | None:
        """The first rank to end; waits briefly for the news after a failed collective."""
        self._collective_failed = True
        self._news.wait(NEWS_SECONDS)
        return self.ended

    def end(self, reason: str) -> Ended:
        """Announce that this rank fails. Returns the first failed rank, possibly this one."""
        self._failing = True
        try:
            first = self._first(Ended(self.rank, reason))
        except RuntimeError:  # the store is gone
            first = self.ended or Ended(self.rank, reason)
        self._note_end(first)
        return first

    def wait_for_announcement(self) -> None:
        """Wait until this rank has printed that it ends because of another."""
        self._announced.wait(3 * FIRST_SECONDS)

    def leave(self) -> None:
        """End normally, without the other ranks taking it for a failure."""
        self._left.set()
        try:
            self._write()
        except RuntimeError:  # the store and its readers are gone
            return
        self.keep_store()

    def keep_store(self) -> None:
        """If this rank holds the store, wait briefly for ranks that still need it."""
        if self.rank != self.host:
            return
        deadline = time.monotonic() + NEWS_SECONDS
        ended = self.ended.rank if self.ended else None
        waited_for = [str(rank) for rank in self._others if rank != ended]
        while waited_for and time.monotonic() < deadline:
            values = self._store.multi_get(waited_for)
            waited_for = [
                key
                for key, value in zip(waited_for, values, strict=True)
                if not (value and json.loads(value)[-1])
            ]
            time.sleep(0.02)

    def _exchange_beats(self) -> None:
        while not self._left.is_set():
            try:
                self._exchange()
            except RuntimeError:
                self._note_end(Ended(self.host, ""))
                return
            self._left.wait(BEAT_SECONDS)

    def _exchange(self) -> None:
        self._write()
        *values, first = self._store.multi_get(self._keys)
        for beats, value in zip(self._others.values(), values, strict=True):
            beats.take(value)
        self._beats += 1
        most = MISSED_BEATS_AFTER_FAILURE if self._collective_failed else MISSED_BEATS
        silent = {rank: each.missed for rank, each in self._others.items() if not each.done}
        longest = max(silent, key=silent.__getitem__, default=None)
        if first:
            self._note_end(Ended(*json.loads(first)))
        elif longest is not None and silent[longest] >= most:
            self._note_end(self._first(Ended(longest, "")))

    def _write(self) -> None:
        with self._writing:  # an earlier heartbeat must not overwrite the final one
            step, stage, since = self.at
            done = self._left.is_set() or self.ended is not None
            beat = [self._beats, step, stage, time.monotonic() - since, done]
            self._store.set(str(self.rank), json.dumps(beat))

    def _first(self, ended: Ended) -> Ended:
        """Record a rank as the first to end, unless one is recorded. Returns the recorded one."""
        return Ended(*json.loads(self._store.compare_set(FIRST_END, "", json.dumps(ended))))

    def _watch_store(self) -> None:
        """Detect an unresponsive store: connections to a lost machine stay open."""
        missed = beats = 0
        while not self._left.wait(BEAT_SECONDS) and self.ended is None:
            missed = missed + 1 if beats == self._beats else 0
            beats = self._beats
            if missed >= MISSED_BEATS:
                self._note_end(Ended(self.host, ""))

    def _note_end(self, ended: Ended) -> None:
        with self._lock:
            if self.ended is not None or self._left.is_set():
                return
            self.ended = ended
        self._news.set()
        if ended.rank != self.rank or not self._failing:
            last = threading.Timer(FIRST_SECONDS, self._end_too)
            last.daemon = True
            last.start()

    def _end_too(self) -> None:
        if self._left.is_set():
            return
        blamed = self.ended is not None and self.ended.rank == self.rank
        why = "the others received no heartbeat of this process" if blamed else self.ended
        print(
            f"{why}; this process (rank {self.rank}) ends too, {self.at}",
            file=sys.stderr,
            flush=True,
        )
        self._announced.set()
        end_within(GRACE_SECONDS)


def end_within(seconds: float) -> None:
    """End this process with code 1 after ``seconds``, even in a blocking call."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115, PTH123  (faulthandler keeps the descriptor)
    faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    _nowhere.append(nowhere)


_nowhere: list[Any] = []
