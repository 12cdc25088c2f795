"""The other ranks of a job: what each is doing, and which one has ended.

A thread of each rank writes a heartbeat to the job's own store twice a second, and reads those of
the others. On one machine that takes 0.1 ms for 64 ranks. The training thread has no part in it: it
only sets :attr:`Peers.at`.

A rank that fails writes its error to the store before it ends, so that the first error is the one
all agree on. A rank that is killed can't; these tell of it:

- its heartbeats stop: for 30 s, or for 2 s after a collective of the rank that listens has failed.
- the store is gone, if it was rank 0 that held it. Under torchrun the agent holds the store; it
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
"""A rank, or the store, without a sign of life for so many of our own heartbeats has ended. They
are counted, not timed, as a rank that was stopped itself must not blame the others."""
MISSED_BEATS_AFTER_FAILURE = 4
"""The same once a collective has failed."""
NEWS_SECONDS = 4.0
"""How long a rank whose collective has failed waits to hear which rank has ended."""
SILENT_SECONDS = 10.0
"""A rank without heartbeats for so long may be stopped; warnings say when it was last heard of."""
FIRST_SECONDS = 1.0
"""Head start of the rank that ended first, to show its error before the others say anything."""
GRACE_SECONDS = 10.0
"""Time that a rank has to end by itself after another has ended."""
FIRST_END = "first_end"


class Stage(IntEnum):
    """What a rank is doing, in the order of a step."""

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
    """Where a rank is. Tuples compare: the greater one has come further. ``since`` is monotonic."""

    step: int = 0
    stage: Stage = STARTING
    since: float = 0.0

    def __str__(self) -> str:
        return PHRASES[self.stage].format(self.step)


class Ended(NamedTuple):
    """The first rank to end, and its error; empty if it was killed.

    ``rank`` is None for torchrun's agent, which holds the store.
    """

    rank: int | None
    reason: str

    def __str__(self) -> str:
        if self.rank is None:
            return "torchrun has ended on the first machine, with the job's store"
        how = f"({self.reason})" if self.reason else "without a word, as if killed"
        return f"rank {self.rank} has ended {how}"


class Heard(NamedTuple):
    """Where another rank was at its last heartbeat, and when that was (monotonic)."""

    at: At
    when: float

    def __str__(self) -> str:
        now = time.monotonic()
        silent = now - self.when
        if silent < SILENT_SECONDS:
            return f"has been {self.at} for {now - self.at.since:.0f} s"
        return f"was {self.at} when it was last heard of, {silent:.0f} s ago"


@dataclass
class _Beats:
    """Heartbeats of another rank.

    Attributes:
        value: the last one, as it is in the store; empty before the first.
        missed: our own heartbeats since then.
        done: it has left in order, or knows that the job is broken: it may end at any time.
    """

    value: bytes = b""
    missed: int = 0
    done: bool = False
    heard: Heard | None = None

    def take(self, value: bytes) -> None:
        """Compare what is in the store now with the last heartbeat."""
        if value == self.value:
            self.missed += bool(value)
            return
        now = time.monotonic()
        _, step, stage, seconds, self.done = json.loads(value)
        self.heard = Heard(At(step, Stage(stage), now - seconds), now)
        self.value, self.missed = value, 0


class Peers:
    """The ranks of a job, as one of them knows them.

    Args:
        rank, world_size: this rank, and how many there are.
        store: the job's store.
        host: the rank that holds the store; None if torchrun's agent does.

    Attributes:
        at: where this rank is; set it whenever that changes.
        ended: the first rank that has ended, other than by :meth:`leave`.
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
        self._left, self._news, self._told = (threading.Event() for _ in range(3))
        # Of several machines, torchrun's store outlives a restart, and what was written before it.
        start = store.add(f"peers/{rank}/starts", 1)
        # A client of its own, as a blocking read by the process group would delay heartbeats.
        own: Any = PrefixStore(f"peers/{start}", store)  # not all releases' types have clone
        self._store = own.clone()
        self._keys = [*map(str, self._others), FIRST_END]
        for key in self._keys:
            self._store.compare_set(key, "", "")  # reading an absent key would block
        threading.Thread(target=self._exchange_beats, name="peers", daemon=True).start()
        threading.Thread(target=self._watch_store, name="peers' store", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether a rank has ended, so that no collective will be complete any more."""
        return self.ended is not None or self._collective_failed

    def heard(self) -> dict[int, Heard]:
        """The last heartbeats of the other ranks, of those that have begun."""
        return {rank: beats.heard for rank, beats in self._others.items() if beats.heard}

    def behind(self) -> dict[int, Heard]:
        """The ranks that have come least far; none if all are equal."""
        known = {**self.heard(), self.rank: Heard(self.at, time.monotonic())}
        least = min(each.at[:2] for each in known.values())
        found = {rank: each for rank, each in sorted(known.items()) if each.at[:2] == least}
        return found if len(found) < len(known) else {}

    def silent(self, rank: int) -> float:
        """Seconds since the last heartbeat of another rank."""
        heard = self._others[rank].heard
        return time.monotonic() - heard.when if heard else 0.0

    def first_end(self) -> Ended | None:
        """The first rank that has ended, after a failed collective; waits a little for the news."""
        self._collective_failed = True
        self._news.wait(NEWS_SECONDS)
        return self.ended

    def end(self, reason: str) -> Ended:
        """Tell the others that this rank fails. Returns the first that did; it may be this one."""
        self._failing = True
        try:
            first = self._first(Ended(self.rank, reason))
        except RuntimeError:  # the store is gone
            first = self.ended or Ended(self.rank, reason)
        self._note_end(first)
        return first

    def wait_until_told(self) -> None:
        """Return when this rank has said that it ends because of another."""
        self._told.wait(3 * FIRST_SECONDS)

    def leave(self) -> None:
        """End in order, which is no news to the others."""
        self._left.set()
        try:
            self._write()
        except RuntimeError:  # the store is gone, and with it whoever would read this
            return
        self.keep_store()

    def keep_store(self) -> None:
        """If this rank holds the store, wait a little until no other needs it any more."""
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
        with self._writing:  # leaving must not be overwritten by an earlier heartbeat
            step, stage, since = self.at
            done = self._left.is_set() or self.ended is not None
            beat = [self._beats, step, stage, time.monotonic() - since, done]
            self._store.set(str(self.rank), json.dumps(beat))

    def _first(self, ended: Ended) -> Ended:
        """Claim that this rank was the first to end. Returns the first that was claimed."""
        return Ended(*json.loads(self._store.compare_set(FIRST_END, "", json.dumps(ended))))

    def _watch_store(self) -> None:
        """Notice a store that doesn't answer: a machine that is gone closes no connection."""
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
        why = "the others have not heard of this process for too long" if blamed else self.ended
        print(
            f"{why}; this process (rank {self.rank}) ends too, {self.at}",
            file=sys.stderr,
            flush=True,
        )
        self._told.set()
        end_within(GRACE_SECONDS)


def end_within(seconds: float) -> None:
    """End this process with code 1 after so long, whatever it is waiting for then."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115, PTH123  (faulthandler keeps its number)
    faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    _nowhere.append(nowhere)


_nowhere: list[Any] = []
