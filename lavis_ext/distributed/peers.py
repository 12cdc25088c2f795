"""The other processes of a job: what each is at, and who has ended.

Rank 0 holds a connection to each of the others. The system closes it when a process ends, by
whatever cause, so that an end is known at once and nobody is taken for dead who is only slow. Of a
machine that is gone, TCP's keep-alive tells within half a minute.
"""

import faulthandler
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakSet

from torch.distributed import Store

from lavis_ext.common.files import parse_json

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
SILENT_SECONDS = 10.0
"""A process that has told nothing for so long is stopped, or its machine is."""
CONNECT_SECONDS = 20.0
NEWS_SECONDS = 2.0
FIRST_SECONDS = 1.0
"""What the process that ended first has, to say why before the others say anything."""
GRACE_SECONDS = 10.0
"""What a process has, once another has ended, to end by itself."""
LONGEST_LINE = 2**16

STARTING, STORING, LOADING, COMPUTING, EVALUATING, SAVING, ENDING = range(7)
STAGES = (
    "starting",
    "storing features",
    "loading data for step {}",
    "computing step {}",
    "evaluating at step {}",
    "saving the state of step {}",
    "ending at step {}",
)


class At(NamedTuple):
    """What a process is at: the greater, the further it has come; ``since`` is monotonic."""

    step: int = 0
    stage: int = STARTING
    since: float = 0.0

    def __str__(self) -> str:
        return STAGES[self.stage].format(self.step)


class Ended(NamedTuple):
    """The process that ended first, and what it said; empty if it said nothing."""

    rank: int
    reason: str


class Heard(NamedTuple):
    """What another process told last, and when."""

    at: At
    when: float

    def __str__(self) -> str:
        now = time.monotonic()
        silent = now - self.when
        if silent < SILENT_SECONDS:
            return f"has been {self.at} for {now - self.at.since:.0f} s"
        return f"was {self.at} when it was last heard of, {silent:.0f} s ago"


class Companions:
    """The processes of a job, as this one knows them.

    Args:
        rank, world_size: this process and how many there are.
        store: the job's store; it tells where rank 0 listens.
        address: where rank 0 is.

    Attributes:
        at: what this process is at; set it whenever that changes.
        ended: who has ended first, if anyone has without leaving.
    """

    def __init__(self, rank: int, world_size: int, store: Store, address: str) -> None:
        self.rank, self.world_size = rank, world_size
        self.at = At(since=time.monotonic())
        self.ended: Ended | None = None
        self._heard: dict[int, Heard] = {}
        self._lines: dict[int, _Line] = {}
        self._left: set[int] = set()
        self._lock = threading.RLock()
        self._news, self._told = threading.Event(), threading.Event()
        self._selector = selectors.DefaultSelector()
        try:
            if rank == 0:
                self._listen(store, address)
            else:
                self._connect(store, address)
        except OSError as error:
            log.warning(
                "rank %d has no connection to rank 0 at %s (%s); should a process end, this one "
                "will notice by run.process_group_timeout_minutes",
                rank,
                address,
                error,
            )
            return
        threading.Thread(target=self._run, name="companions", daemon=True).start()

    def heard(self) -> dict[int, Heard]:
        """What the other processes have told: all of them to rank 0, some of them to the others."""
        with self._lock:
            return dict(sorted(self._heard.items()))

    def behind(self) -> dict[int, Heard]:
        """The processes that have come least far, of those this one knows; none if all are equal.

        Rank 0 knows all, the others know those that rank 0 finds behind.
        """
        now = time.monotonic()
        known = {**self.heard(), self.rank: Heard(self.at, now)}
        least = min(each.at[:2] for each in known.values())
        found = {rank: each for rank, each in sorted(known.items()) if each.at[:2] == least}
        return found if len(found) < len(known) else {}

    def silent(self, rank: int) -> float:
        """Seconds since this process heard of another one."""
        heard = self._heard.get(rank)
        return time.monotonic() - heard.when if heard else 0.0

    def first_end(self) -> Ended | None:
        """The process that has ended first; waits a little for such news."""
        self._news.wait(NEWS_SECONDS)
        return self.ended

    def end(self, reason: str) -> Ended:
        """Tell that this process fails. Returns the first that did, which may be this one."""
        if self.rank == 0:
            self._note_end(Ended(0, reason))
        elif 0 in self._lines:
            self._lines[0].send({"failed": reason})
        return self.first_end() or Ended(self.rank, reason)

    def wait_until_told(self) -> None:
        """Return when this process has said that it ends because of another."""
        self._told.wait(3 * FIRST_SECONDS)

    def leave(self) -> None:
        """End in order, which is no news to the others."""
        with self._lock:
            self._left.add(self.rank)
            for line in self._lines.values():
                line.send({"left": True})

    def _listen(self, store: Store, address: str) -> None:
        local = address in ("127.0.0.1", "localhost")
        listener = socket.create_server(("127.0.0.1" if local else "", 0), backlog=self.world_size)
        _sockets.add(listener)
        self._token = secrets.token_hex(8)
        self._selector.register(listener, selectors.EVENT_READ, None)
        store.set("companions", f"{listener.getsockname()[1]} {self._token}")

    def _connect(self, store: Store, address: str) -> None:
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            # After a restart it may be that of the life before, where nobody listens any more.
            port, token = store.get("companions").decode().split()
            try:
                connection = socket.create_connection((address, int(port)), timeout=5)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        line = self._lines[0] = _Line(connection)
        line.rank = 0
        line.send({"rank": self.rank, "token": token})
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _run(self) -> None:
        beat = 0.0
        # A fault here may not end the run; the process group's timeout remains.
        with suppress(Exception):
            while True:
                for key, _ in self._selector.select(BEAT_SECONDS):
                    if key.data is None:
                        self._accept(key.fileobj)
                    else:
                        self._read(key.data)
                if time.monotonic() - beat >= BEAT_SECONDS:
                    beat = time.monotonic()
                    self._beat(beat)

    def _accept(self, listener: Any) -> None:
        connection, _ = listener.accept()
        self._selector.register(connection, selectors.EVENT_READ, _Line(connection))

    def _read(self, line: "_Line") -> None:
        messages = line.received()
        for message in messages or ():
            if line.rank is None:
                if message.get("token") != self._token:
                    messages = None
                    break
                line.rank = int(message["rank"])
                with self._lock:
                    self._lines[line.rank] = line
                    if self.ended:
                        line.send({"ended": self.ended})
            self._take(line.rank, message)
        if messages is None:
            self._selector.unregister(line.socket)
            line.socket.close()
            if line.rank is not None and line.rank not in self._left:
                with self._lock:
                    self._lines.pop(line.rank, None)
                self._note_end(Ended(line.rank, ""))

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        now = time.monotonic()
        for name, value in message.items():
            if name == "at":  # of a process, or of several that are behind
                heard = {
                    other: Heard(At(step, stage, now - seconds), now)
                    for other, step, stage, seconds in value
                    if other != self.rank
                }
                with self._lock:
                    self._heard |= heard
            elif name == "left":
                self._left.add(rank)
            elif name == "failed":
                self._note_end(Ended(rank, str(value)))
            elif name == "ended":
                self._note_end(Ended(*value))

    def _beat(self, now: float) -> None:
        own = [[self.rank, *self.at[:2], now - self.at.since]]
        if self.rank:
            self._lines[0].send({"at": own})
            return
        others = [
            [rank, *heard.at[:2], now - heard.at.since]
            for rank, heard in self.behind().items()
            if rank
        ]
        with self._lock:
            for rank, line in self._lines.items():
                # What nobody reads would fill up the system's buffers in the end.
                if self.silent(rank) < SILENT_SECONDS:
                    line.send({"at": [*own, *others]})

    def _note_end(self, ended: Ended) -> None:
        with self._lock:
            if self.ended is not None or self.rank in self._left:
                return
            self.ended = ended
            if self.rank == 0:
                for line in self._lines.values():
                    line.send({"ended": ended})
        self._news.set()
        if ended.rank != self.rank:
            last = threading.Timer(FIRST_SECONDS, self._end_too)
            last.daemon = True
            last.start()

    def _end_too(self) -> None:
        if self.rank in self._left or self.ended is None:
            return
        how = f"({self.ended.reason})" if self.ended.reason else "without a word, as if killed"
        print(
            f"rank {self.ended.rank} has ended {how}; this process (rank {self.rank}) ends too, "
            f"{self.at}",
            file=sys.stderr,
            flush=True,
        )
        self._told.set()
        end_within(GRACE_SECONDS)


class _Line:
    """Messages to and from another process, each a line of JSON. ``rank`` is None until it says."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rank: int | None = None
        self._rest = b""
        self._lock = threading.Lock()
        connection.settimeout(5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        _sockets.add(connection)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; whether it arrives is found out otherwise."""
        with self._lock, suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def received(self) -> list[dict[str, Any]] | None:
        """What has come; None at the end, and for what no companion sends."""
        try:
            data = self.socket.recv(LONGEST_LINE)
            *lines, self._rest = (self._rest + data).split(b"\n")
            messages = [dict(parse_json(line)) for line in lines]
        except (OSError, ValueError, TypeError):
            return None
        return messages if data and len(self._rest) < LONGEST_LINE else None


_sockets: "WeakSet[socket.socket]" = WeakSet()


def _leave_to_parent() -> None:
    for each in _sockets:
        each.close()


# In a loader worker that outlives its process, they would hide that it has ended.
os.register_at_fork(after_in_child=_leave_to_parent)


def end_within(seconds: float) -> None:
    """End this process with code 1 after so long, whatever it is waiting for then."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115, PTH123  (faulthandler keeps its number)
    faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    _nowhere.append(nowhere)


_nowhere: list[Any] = []
