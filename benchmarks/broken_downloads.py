"""Compare the bytes sent for an interrupted download by our downloader and by fsspec.

    pip install 'fsspec[http]'
    python -m benchmarks.broken_downloads

A local server sends 100 MB and closes the connection after 40 MB, twice. Both downloads are
repeated until the file is complete; the result is the number of MB that the server sent to each.
"""

import importlib
import json
import os
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from lavis_ext.common import downloads

SIZE, CUT_AFTER, CUTS = 100_000_000, 40_000_000, 2


class Breaking(BaseHTTPRequestHandler):
    """Sends zeros from the requested byte on."""

    cuts = sent = 0

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        """Send the size."""
        self._begin()

    def do_GET(self) -> None:
        """Send the requested range, cut after ``CUT_AFTER`` bytes."""
        start = self._begin()
        end = SIZE
        if Breaking.cuts:
            Breaking.cuts -= 1
            end = min(SIZE, start + CUT_AFTER)
        Breaking.sent += end - start
        self.wfile.write(bytes(end - start))

    def _begin(self) -> int:
        wanted = self.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(SIZE - start))
        self.send_header("ETag", '"1"')
        self.end_headers()
        return start


def ours(url: str, path: Path) -> None:
    """Download like GQA's archives."""
    downloads.download(downloads.ask(url), path, {}, lambda: None)


def fsspec(url: str, path: Path) -> None:
    """Download with fsspec, retrying after each failure."""
    system = importlib.import_module("fsspec").filesystem("http")
    for _ in range(CUTS):
        try:
            system.get_file(url, str(path))
        except Exception as error:
            downloads.print_stderr(f"fsspec: {type(error).__name__}")
    system.get_file(url, str(path))


def main() -> None:
    """Download both ways and print the MB sent."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    downloads.FIRST_WAIT_SECONDS = 0.0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Breaking)
    Thread(target=server.serve_forever, daemon=True).start()
    url, found = f"http://127.0.0.1:{server.server_port}/file", {}
    with tempfile.TemporaryDirectory() as folder:
        for way in (ours, fsspec):
            Breaking.cuts, Breaking.sent = CUTS, 0
            path = Path(folder) / way.__name__
            way(url, path)
            assert path.stat().st_size == SIZE
            found[way.__name__] = Breaking.sent / 1e6
    server.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
