"""Fetching large files over HTTP: resumed, checked for size, with bounded tries and progress.

fsspec's HTTP can't take its place. Its ``get`` starts over after a break: for 100 MB over a
connection that breaks after 40 MB, twice, the server sends 180 MB, and 100 MB to this module
(``python -m benchmarks.broken_downloads``). It sends no ``If-Range``, so
a file that changed in between would be continued with bytes of another version. It needs aiohttp
and seven packages besides, which no other part of this library does.
"""

import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from lavis_ext.common.errors import UserError

TIMEOUT_SECONDS = 60.0
ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
TERMINAL_SECONDS, LOG_SECONDS = 0.5, 15.0  # between two lines of progress
CHUNK = 1 << 18
GB = 1e9


class ConnectionLost(Exception):
    """The request failed in a way that may pass."""


@dataclass(frozen=True)
class Remote:
    """A file as the server announces it.

    Attributes:
        url: its address.
        size: bytes.
        version: a strong ETag or the date of its last change, where the server gives one.
    """

    url: str
    size: int
    version: str | None


class _Attempts:
    """Waits longer from failure to failure, and gives up after ``ATTEMPTS`` without progress."""

    def __init__(self, url: str) -> None:
        self.url, self.failures = url, 0

    def failed(self, error: ConnectionLost) -> None:
        """Wait, or raise UserError."""
        self.failures += 1
        if self.failures >= ATTEMPTS:
            raise UserError(
                f"{self.url}: given up after {ATTEMPTS} attempts ({error}). Look at the network; "
                "what has arrived is kept, and the same command goes on from there."
            )
        wait = FIRST_WAIT_SECONDS * 2 ** (self.failures - 1)
        say(f"{self.url}: {error}; trying again in {wait:.0f} s.")
        time.sleep(wait)


def _request(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    """The response. Raises ConnectionLost, or UserError where trying again is no use."""
    try:
        request = urllib.request.Request(url, method=method, headers=headers or {})
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        answer = f"HTTP {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise ConnectionLost(answer) from None
        raise UserError(
            f"{url}: the server refuses it ({answer}). The file may have moved: look at its "
            "authors' page and give the new address (--base-url)."
        ) from None
    except (OSError, HTTPException) as error:
        raise ConnectionLost(str(getattr(error, "reason", "") or error or repr(error))) from None
    except ValueError as error:
        raise UserError(f"{url}: not an address ({error}). Check --base-url.") from None


def ask(url: str) -> Remote:
    """What the server says of a file, without fetching it."""
    attempts = _Attempts(url)
    while True:
        try:
            with _request(url, "HEAD") as response:
                headers = response.headers
            break
        except ConnectionLost as error:
            attempts.failed(error)
    size = headers.get("Content-Length", "")
    if not size.isdecimal():
        raise UserError(f"{url}: the server names no size, so it is no file that can be checked.")
    tag = headers.get("ETag")
    strong = tag if tag and not tag.startswith("W/") else None  # If-Range takes no weak ones
    return Remote(url, int(size), strong or headers.get("Last-Modified"))


def download(
    remote: Remote, archive: Path, record: dict[str, Any], save: Callable[[], None]
) -> None:
    """Fetch ``archive``, going on from what an earlier run has left of the same version."""
    partial = partial_of(archive)
    version = [remote.size, remote.version]
    if partial.exists() and record.get("partial") != version:
        say(f"{partial} is of another version of the file: starting over.")
        partial.unlink()
    record |= {"url": remote.url, "partial": version}
    save()
    attempts = _Attempts(remote.url)
    furthest = size_of(partial)
    while size_of(partial) < remote.size:
        try:
            _go_on(remote, partial)
        except ConnectionLost as error:
            if size_of(partial) > furthest:
                furthest, attempts.failures = size_of(partial), 0
            attempts.failed(error)
    partial.rename(archive)
    del record["partial"]


def _go_on(remote: Remote, partial: Path) -> None:
    """One request for what is missing of ``partial``, appended as it arrives."""
    have = size_of(partial)
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and remote.version:
        headers["If-Range"] = remote.version
    with _request(remote.url, headers=headers) as response:
        resumed = response.status == 206
        if have and not resumed:
            say(f"{remote.url}: the server does not go on from the middle: starting over.")
        done = have if resumed else 0
        promised = done + int(response.headers.get("Content-Length") or 0)
        if promised != remote.size:
            raise UserError(
                f"{remote.url}: the server announces {remote.size:,} bytes and sends {promised:,}. "
                "Run the same command again later."
            )
        progress = Progress(partial.name.removesuffix(".part"), done, remote.size)
        with partial.open("ab" if resumed else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                progress.at(done)
    progress.end()
    if done != remote.size:
        raise ConnectionLost(f"the connection ended after {done:,} of {remote.size:,} bytes")


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise ConnectionLost(str(error) or repr(error)) from None
    return chunk


class Progress:
    """A line with percent, MB/s and time left: rewritten on a terminal, rarer in a log."""

    def __init__(self, what: str, done: int, total: int) -> None:
        self.what, self.begun_at, self.done, self.total = what, done, done, total
        self.start = self.shown = time.monotonic()
        self.on_terminal = sys.stderr.isatty()

    def at(self, done: int) -> None:
        """Note how many bytes are done."""
        self.done = done
        now = time.monotonic()
        if now - self.shown >= (TERMINAL_SECONDS if self.on_terminal else LOG_SECONDS):
            self.shown = now
            self._show("\r" if self.on_terminal else "", "" if self.on_terminal else "\n")

    def end(self) -> None:
        """The last line."""
        self._show("\r" if self.on_terminal else "", "\n")

    def _show(self, before: str, after: str) -> None:
        seconds = max(time.monotonic() - self.start, 1e-3)
        rate = (self.done - self.begun_at) / seconds
        minutes, second = divmod(round((self.total - self.done) / max(rate, 1.0)), 60)
        left = f"{minutes // 60}:{minutes % 60:02}:{second:02}"
        percent = 100 * self.done / max(self.total, 1)
        line = (
            f"{self.what}: {percent:5.1f} % of {self.total / GB:.2f} GB, {rate / 1e6:6.1f} MB/s, "
            f"{left} left"
        )
        print(f"{before}{line}", end=after, file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def partial_of(archive: Path) -> Path:
    """Where ``archive`` grows until it is complete."""
    return archive.with_name(archive.name + ".part")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
