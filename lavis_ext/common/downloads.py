"""Download large files over HTTP: resumable, size-checked, with retries and progress.

fsspec's HTTP is no substitute. Its ``get`` starts over after a dropped connection: for 100 MB over
a connection that drops after 40 MB, twice, the server sends 180 MB, and 100 MB to this module
(``python -m benchmarks.broken_downloads``). It sends no ``If-Range``, so a file that changed in
between would be continued with bytes of another version. It requires aiohttp and seven other
packages that no other part of this library needs.
"""

import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError

from lavis_ext.common.errors import UserError
from lavis_ext.common.progress import ProgressLine

TIMEOUT_SECONDS = 60.0
ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
LOG_SECONDS = 15.0  # interval between progress lines in a file
CHUNK = 1 << 18
GB = 1e9


class ConnectionLost(Exception):
    """Raised for a failed request that a retry may fix."""


@dataclass(frozen=True)
class Remote:
    """URL, size and version of a file on a server.

    Attributes:
        url: URL of the file.
        size: size in bytes.
        version: strong ETag or modification date, if the server sends one.
    """

    url: str
    size: int
    version: str | None


class _Attempts:
    """Exponential backoff that gives up after ``ATTEMPTS`` failures without progress."""

    def __init__(self, url: str) -> None:
        self.url, self.failures = url, 0

    def failed(self, error: ConnectionLost) -> None:
        """Wait for the next attempt, or raise UserError."""
        self.failures += 1
        if self.failures >= ATTEMPTS:
            raise UserError(
                f"{self.url}: gave up after {ATTEMPTS} attempts ({error}). Check the network, "
                "then run the same command again; it resumes the download."
            )
        wait = FIRST_WAIT_SECONDS * 2 ** (self.failures - 1)
        print_stderr(f"{self.url}: {error}; retrying in {wait:.0f} s.")
        time.sleep(wait)


def _request(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    """Open a URL. Raises ConnectionLost if a retry may help, else UserError."""
    try:
        request = urllib.request.Request(url, method=method, headers=headers or {})
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        answer = f"HTTP {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise ConnectionLost(answer) from None
        raise UserError(
            f"{url}: the server refuses the request ({answer}). The file may have moved: find "
            "its new URL on the data set's page and pass it with --base-url."
        ) from None
    except (OSError, HTTPException) as error:
        raise ConnectionLost(str(getattr(error, "reason", "") or error or repr(error))) from None
    except ValueError as error:
        raise UserError(f"{url}: not a valid URL ({error}). Check --base-url.") from None


def ask(url: str) -> Remote:
    """Size and version of a file, by a HEAD request."""
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
        raise UserError(f"{url}: the server reports no size, so a download can't be checked.")
    tag = headers.get("ETag")
    strong = tag if tag and not tag.startswith("W/") else None  # If-Range accepts no weak ones
    return Remote(url, int(size), strong or headers.get("Last-Modified"))


def download(
    remote: Remote, archive: Path, record: dict[str, Any], save: Callable[[], None]
) -> None:
    """Download ``archive``, resuming a partial download of the same version."""
    partial = partial_of(archive)
    version = [remote.size, remote.version]
    if partial.exists() and record.get("partial") != version:
        print_stderr(f"{partial} belongs to another version of the file: starting over.")
        partial.unlink()
    record |= {"url": remote.url, "partial": version}
    save()
    attempts = _Attempts(remote.url)
    furthest = size_of(partial)
    while size_of(partial) < remote.size:
        try:
            _resume(remote, partial)
        except ConnectionLost as error:
            if size_of(partial) > furthest:
                furthest, attempts.failures = size_of(partial), 0
            attempts.failed(error)
    partial.rename(archive)
    del record["partial"]


def _resume(remote: Remote, partial: Path) -> None:
    """Request the missing bytes of ``partial`` and append them as they arrive."""
    have = size_of(partial)
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and remote.version:
        headers["If-Range"] = remote.version
    with _request(remote.url, headers=headers) as response:
        resumed = response.status == 206
        if have and not resumed:
            print_stderr(f"{remote.url}: the server doesn't support resuming: starting over.")
        done = have if resumed else 0
        promised = done + int(response.headers.get("Content-Length") or 0)
        if promised != remote.size:
            raise UserError(
                f"{remote.url}: the server announced {remote.size:,} bytes but sends {promised:,}. "
                "Run the same command again later."
            )
        name = partial.name.removesuffix(".part")
        mode = "ab" if resumed else "wb"
        with Progress(name, done, remote.size) as progress, partial.open(mode) as file:
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
    """Shows percent, MB/s and time left of a transfer on standard error."""

    def __init__(self, name: str, done: int, total: int) -> None:
        self.name, self.begun_at, self.done, self.total = name, done, done, total
        self.start = time.monotonic()
        self.line = ProgressLine.on_stderr(LOG_SECONDS)

    def at(self, done: int) -> None:
        """Record the number of received bytes, and show it if a line is due."""
        self.done = done
        self.line.update(self._text())

    def end(self) -> None:
        """Print the final line."""
        self.line.close()
        print_stderr(self._text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def _text(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-3)
        rate = (self.done - self.begun_at) / seconds
        minutes, second = divmod(round((self.total - self.done) / max(rate, 1.0)), 60)
        left = f"{minutes // 60}:{minutes % 60:02}:{second:02}"
        percent = 100 * self.done / max(self.total, 1)
        return (
            f"{self.name}: {percent:5.1f} % of {self.total / GB:.2f} GB, {rate / 1e6:6.1f} MB/s, "
            f"{left} left"
        )


def print_stderr(line: str) -> None:
    """Print a line to standard error at once."""
    print(line, file=sys.stderr, flush=True)


def partial_of(archive: Path) -> Path:
    """Path of the partial download of ``archive``."""
    return archive.with_name(archive.name + ".part")


def size_of(path: Path) -> int:
    """Size of a file in bytes, 0 if it doesn't exist."""
    return path.stat().st_size if path.exists() else 0
