"""GQA's download from a local server: contents, resumption and errors."""

import hashlib
import io
import json
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from lavis_ext.common import downloads
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.download import PARTS, download_gqa, main
from lavis_ext.datasets.gqa.questions import find_questions, read_questions

pytestmark = pytest.mark.beyond_core

RECORD = {"02930152": {"question": "Is it red?", "imageId": "2405722", "answer": "no"}}


def packed(**files: bytes) -> bytes:
    """An uncompressed zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def questions_zip() -> bytes:
    record = json.dumps(RECORD).encode()
    return packed(
        **{f"{split}_balanced_questions.json": record for split in ("train", "val", "testdev")},
        **{f"train_all_questions/train_all_questions_{n}.json": record for n in range(2)},
    )


def images_zip() -> bytes:
    """Images in a folder of the archive, with 100 kB for interruptions."""
    return packed(**{f"images/{number}.jpg": bytes([number]) * 20_000 for number in range(5)})


class Server:
    """Serves ``files``; other attributes define its faults."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/nlp/data/gqa/"
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.version = '"1"'
        self.cut_after: int | None = None
        """Bytes before a connection is cut, ``cuts`` times."""
        self.cuts = 0
        self.named_too_much = 0
        self.head_names_too_much = 0
        self.failures = 0
        self.requests: list[tuple[str, str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        behavior: Server = self.server.behavior  # type: ignore[attr-defined]
        name, wanted = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
        behavior.requests.append((self.command, name, wanted))
        content = behavior.files.get(name)
        if content is None:
            return self.send_error(404)
        if behavior.failures:
            behavior.failures -= 1
            return self.send_error(503)
        start = 0
        if wanted and behavior.ranges and self.headers["If-Range"] == behavior.version:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        extra = behavior.named_too_much + (0 if body else behavior.head_names_too_much)
        self.send_header("Content-Length", str(len(content) - start + extra))
        self.send_header("ETag", behavior.version)
        self.end_headers()
        if not body:
            return None
        end = None
        if behavior.cuts and behavior.cut_after is not None:
            behavior.cuts -= 1
            end = start + behavior.cut_after
        self.wfile.write(content[start:end])
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "FIRST_WAIT_SECONDS", 0.0)
    # The known checksum is that of the real images.
    monkeypatch.setitem(PARTS, "images", replace(PARTS["images"], sha256=None))
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    behavior = Server(listening.server_port)
    behavior.files = {"questions1.2.zip": questions_zip(), "images.zip": images_zip()}
    listening.behavior = behavior  # type: ignore[attr-defined]
    thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield behavior
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "gqa"


@pytest.fixture
def fetch(server: Server, out: Path) -> Callable[..., None]:
    return partial(download_gqa, out, base_url=server.url)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_is_laid_out_as_the_library_reads_it(fetch: Callable[..., None], out: Path) -> None:
    fetch()
    for split in ("train", "val", "testdev"):
        table = read_questions(find_questions(out, split, "balanced"))
        assert table.text("question_id", 0) == "02930152"
    assert find_questions(out, "train", "all") == out / "questions" / "train_all_questions"
    assert names(out / "images") == {f"{number}.jpg" for number in range(5)}
    assert (out / "images" / "3.jpg").read_bytes() == bytes([3]) * 20_000
    assert names(out) == {"questions", "images", "downloads.json"}


def test_downloads_are_recorded(fetch: Callable[..., None], out: Path, server: Server) -> None:
    fetch(["questions"])
    content = server.files["questions1.2.zip"]
    assert json.loads((out / "downloads.json").read_text()) == {
        "questions": {
            "url": server.url + "questions1.2.zip",
            "archive": "questions1.2.zip",
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "files": 5,
        }
    }


def test_a_second_run_changes_nothing_and_needs_no_network(
    fetch: Callable[..., None], out: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch()
    server.requests.clear()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    fetch()
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "images is complete already: 5 files" in capsys.readouterr().out


def test_missing_files_of_a_folder_are_detected(fetch: Callable[..., None], out: Path) -> None:
    fetch(["images"])
    (out / "images" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"images: 4 of the 5 .*Delete the folder"):
        fetch(["images"])


def test_an_existing_folder_of_other_origin_is_kept(fetch: Callable[..., None], out: Path) -> None:
    (out / "images").mkdir(parents=True)
    (out / "images" / "mine.jpg").write_text("mine")
    with pytest.raises(UserError, match=r"images exists and wasn't created by this download"):
        fetch(["images"])
    assert (out / "images" / "mine.jpg").read_text() == "mine"


# --- connections that break ----------------------------------------------------------------------


def test_a_dropped_download_resumes(fetch: Callable[..., None], out: Path, server: Server) -> None:
    server.cut_after, server.cuts = 30_000, 2
    fetch(["images"])
    ranges = [wanted for method, _, wanted in server.requests if method == "GET"]
    assert ranges == [None, "bytes=30000-", "bytes=60000-"]
    assert (out / "images" / "4.jpg").read_bytes() == bytes([4]) * 20_000


def test_a_later_run_resumes_a_failed_download(
    fetch: Callable[..., None],
    out: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.cut_after, server.cuts = 70_000, 1
    with pytest.raises(UserError, match=r"gave up after 1 attempts \(.*70,000 of .* it resumes"):
        fetch(["images"])
    assert (out / "images.zip.part").stat().st_size == 70_000
    assert not (out / "images").exists()
    server.requests.clear()
    fetch(["images"])
    assert ("GET", "images.zip", "bytes=70000-") in server.requests
    assert names(out) == {"images", "downloads.json"}
    assert "starting over" not in capsys.readouterr().err


def test_without_range_support_a_download_starts_over(
    fetch: Callable[..., None],
    out: Path,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.ranges, server.cut_after, server.cuts = False, 30_000, 1
    fetch(["images"])
    assert (out / "images" / "4.jpg").read_bytes() == bytes([4]) * 20_000
    assert "doesn't support resuming: starting over" in capsys.readouterr().err


def test_a_partial_download_of_another_version_is_discarded(
    fetch: Callable[..., None],
    out: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.cut_after, server.cuts = 70_000, 1
    with pytest.raises(UserError, match="gave up"):
        fetch(["images"])
    server.files["images.zip"] = packed(**{f"{n}.jpg": b"new" * 30_000 for n in range(2)})
    server.version = '"2"'
    fetch(["images"])
    assert (out / "images" / "1.jpg").read_bytes() == b"new" * 30_000
    assert "another version of the file: starting over" in capsys.readouterr().err


def test_a_connection_that_always_breaks_is_abandoned(
    fetch: Callable[..., None], server: Server
) -> None:
    server.ranges, server.cut_after, server.cuts = False, 30_000, 1000
    with pytest.raises(UserError, match=r"gave up after 6 attempts"):
        fetch(["images"])
    # The first gets further than nothing; six more get no further.
    assert sum(method == "GET" for method, _, _ in server.requests) <= 7


def test_an_overloaded_server_is_retried_with_growing_pauses(
    fetch: Callable[..., None], out: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(downloads, "FIRST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.failures = 3
    fetch(["images"])
    assert waits == [1, 2, 4]
    assert len(names(out / "images")) == 5


def test_without_a_network_it_exits_with_2_and_a_message(
    server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing listens there.
    with pytest.raises(SystemExit) as caught:
        main([str(out), "--base-url", "http://127.0.0.1:9/gqa"])
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: http://127.0.0.1:9/gqa/questions1.2.zip: gave up after 6")
    assert "Check the network" in error


def test_progress_names_percent_rate_and_time_left(
    fetch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(downloads, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(downloads, "CHUNK", 25_000)
    fetch(["images"])
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("images.zip:")
    ]
    assert len(lines) > 4
    pattern = r"images\.zip: +[\d.]+ % of 0\.00 GB, +[\d.]+ MB/s, \d+:\d\d:\d\d left"
    assert all(re.fullmatch(pattern, line) for line in lines if "%" in line)
    assert "100.0 %" in capsys.readouterr().err + "\n".join(lines)


# --- files that are not what they should be ------------------------------------------------------


def test_a_missing_file_is_named_before_any_download(
    server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(out), "--parts", "questions", "eval", "--base-url", server.url])
    assert caught.value.code == 2
    assert "eval.zip: the server refuses the request (HTTP 404" in capsys.readouterr().err
    # All are asked for before the first is fetched.
    assert all(method == "HEAD" for method, _, _ in server.requests)


def test_fewer_bytes_than_announced_are_rejected(
    fetch: Callable[..., None], out: Path, server: Server
) -> None:
    server.named_too_much = 7
    with pytest.raises(UserError, match=r"gave up .*the connection ended after [\d,]+ of"):
        fetch(["images"])
    assert not (out / "images").exists()


def test_another_size_than_announced_is_rejected(
    fetch: Callable[..., None], out: Path, server: Server
) -> None:
    server.head_names_too_much = 7
    with pytest.raises(UserError, match=r"announced [\d,]+ bytes but sends [\d,]+"):
        fetch(["images"])
    assert not (out / "images").exists()


@pytest.mark.parametrize("damage", ["a byte", "the end", "everything"])
def test_a_damaged_archive_is_named_and_fixed_by_deleting_it(
    damage: str, fetch: Callable[..., None], out: Path, server: Server
) -> None:
    whole = server.files["images.zip"]
    server.files["images.zip"] = {
        "a byte": whole[:50_000] + b"X" + whole[50_001:],
        "the end": whole[:-30],
        "everything": b"<html>Please log in.</html>",
    }[damage]
    for _ in range(2):
        with pytest.raises(UserError, match=r"gqa/images\.zip is damaged .*Delete that file"):
            fetch(["images"])
        assert names(out) == {"images.zip", "downloads.json"}
    (out / "images.zip").unlink()
    server.files["images.zip"] = whole
    fetch(["images"])
    assert len(names(out / "images")) == 5


@pytest.mark.parametrize(
    "name",
    [
        "../outside.jpg",
        "images/../../outside.jpg",
        "/outside.jpg",
        "..\\outside.jpg",
        "C:x.jpg",
    ],
)
def test_a_path_outside_the_folder_is_rejected(
    name: str, fetch: Callable[..., None], tmp_path: Path, server: Server
) -> None:
    server.files["images.zip"] = packed(**{"images/1.jpg": b"1", name: b"out"})
    with pytest.raises(UserError, match="a path outside its folder"):
        fetch(["images"])
    assert names(tmp_path / "gqa") == {"images.zip", "downloads.json"}
    assert names(tmp_path) == {"gqa"}


def test_a_link_in_the_archive_is_rejected(fetch: Callable[..., None], server: Server) -> None:
    link = zipfile.ZipInfo("images/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images/1.jpg", b"1")
        archive.writestr(link, "/etc")
    server.files["images.zip"] = buffer.getvalue()
    with pytest.raises(UserError, match="'images/link', a path outside its folder"):
        fetch(["images"])


def test_an_archive_of_something_else_is_rejected(
    fetch: Callable[..., None], out: Path, server: Server
) -> None:
    server.files["images.zip"] = questions_zip()
    with pytest.raises(UserError, match=r"it has no \*\.jpg"):
        fetch(["images"])
    assert not (out / "images").exists()


def test_a_known_checksum_is_compared(
    fetch: Callable[..., None], out: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARTS, "images", replace(PARTS["images"], sha256="0" * 64))
    found = hashlib.sha256(server.files["images.zip"]).hexdigest()
    with pytest.raises(UserError, match=rf"sha256 is {found}; the known one is 0{{64}}"):
        fetch(["images"])
    assert not (out / "images").exists()
    fetch(["images"], accept_changed=True)
    assert len(names(out / "images")) == 5


def test_a_file_changed_since_an_earlier_download_is_detected(
    fetch: Callable[..., None], out: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(["images"])
    first = hashlib.sha256(server.files["images.zip"]).hexdigest()
    assert f"{first}. There is no known one to compare it with" in capsys.readouterr().out
    shutil.rmtree(out / "images")
    fetch(["images"])
    assert f"{first}, which is an earlier download's" in capsys.readouterr().out
    shutil.rmtree(out / "images")
    server.files["images.zip"] = packed(**{"images/1.jpg": b"new"})
    with pytest.raises(UserError, match=rf"an earlier download's is {first}"):
        fetch(["images"])
    fetch(["images"], accept_changed=True)
    assert json.loads((out / "downloads.json").read_text())["images"]["sha256"] != first


# --- the disk ------------------------------------------------------------------------------------


def test_too_little_disk_space_is_an_error_before_the_download(
    fetch: Callable[..., None], out: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_size = len(server.files["images.zip"])
    free = SimpleNamespace(free=int(1.9 * packed_size))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"GB, and 0\.0 GB of the disk are free.*--parts"):
        fetch(["images"])
    assert all(method == "HEAD" for method, _, _ in server.requests)
    free.free = int(2.1 * packed_size)
    fetch(["images"])
    assert len(names(out / "images")) == 5


def test_an_archive_larger_than_estimated_is_noticed_before_it_is_unpacked(
    fetch: Callable[..., None], out: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.jpg", bytes(10_000_000))
    server.files["images.zip"] = buffer.getvalue()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(UserError, match=r"images\.zip, unpacked, takes"):
        fetch(["images"])
    assert names(out) == {"images.zip", "downloads.json"}


def test_a_folder_that_cannot_be_made_is_named(
    fetch: Callable[..., None], tmp_path: Path, server: Server
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*can't be read or written"):
        download_gqa(tmp_path / "file" / "gqa", base_url=server.url)


def test_archives_are_kept_on_request_and_used_without_the_network(
    fetch: Callable[..., None], out: Path, server: Server
) -> None:
    fetch(["images"], keep_archives=True)
    shutil.rmtree(out / "images")
    server.requests.clear()
    fetch(["images"])
    assert server.requests == []
    assert names(out) == {"images", "downloads.json"}
