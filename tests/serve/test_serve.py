"""The page where one drops a picture and asks: what it answers, and what it refuses."""

import io
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_ext.ask.pipeline import AnsweredPicture, Pipeline, load_pipeline
from lavis_ext.common.errors import UserError
from lavis_ext.config import keys
from lavis_ext.evaluation.answered import Answered
from lavis_ext.serve import command
from tests.browser import browser_page, find_browser
from tests.evaluation.test_picture import made_output
from tests.launching import PATIENCE, wait_until

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("python_multipart", reason="the extra `serve` is not installed")
pytest.importorskip("httpx", reason="the test client is not installed")
pytestmark = pytest.mark.beyond_core

from starlette.testclient import TestClient  # noqa: E402

from lavis_ext.serve.app import Limits, application  # noqa: E402

URL = "http://127.0.0.1"
QUESTIONS = {"questions": "what color is it?"}


class FakePipeline:
    """Answers red, once it may."""

    def __init__(self) -> None:
        self.may_answer, self.asked = threading.Event(), threading.Semaphore(0)
        self.may_answer.set()
        self.error: Exception | None = None

    def notes(self, questions: list[str]) -> list[str]:
        return ["the text encoder doesn't know: <xylophone>."]

    def ask(self, image: Any, questions: list[str], name: str) -> AnsweredPicture:
        self.asked.release()
        assert self.may_answer.wait(60)
        if self.error is not None:
            raise self.error
        made = made_output(len(questions), hot=(1, 6))
        return AnsweredPicture(name, image, Answered.all_of(questions, made))


@pytest.fixture
def fake() -> FakePipeline:
    return FakePipeline()


@pytest.fixture
def client(fake: FakePipeline) -> Iterator[TestClient]:
    with client_of(fake) as opened:
        yield opened


def client_of(pipeline: Any, **limits: Any) -> TestClient:
    return TestClient(application(pipeline, Limits(**limits)), base_url=URL)


def png(width: int = 32, height: int = 24) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(written, "PNG")
    return written.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = (
        chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + content


def upload(content: bytes, name: str = "cup.png") -> dict[str, Any]:
    return {"files": {"picture": (name, content)}, "data": QUESTIONS}


def test_a_picture_is_answered_with_everything_that_ask_shows(client: TestClient) -> None:
    assert 'type="file"' in client.get("/").text
    both = {"questions": "what <b>color</b>?\n\n where?\n"}
    answer = client.post("/", files={"picture": ("<i>.png", png())}, data=both)
    assert answer.status_code == 200
    page = answer.text
    assert page.count("Answer: <b>red</b>") == 2
    assert "what &lt;b&gt;color&lt;/b&gt;?" in page
    assert "<h2>&lt;i&gt;.png</h2>" in page
    assert "doesn&#x27;t know: &lt;xylophone&gt;" in page
    for label in ("raw heat", "points and mask", "refined heat", "1 caption"):
        assert label in page
    assert "script" not in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (upload(b"no picture", "cup.jpg"), 422, "cup.jpg: not a supported image format (JPEG"),
        (upload(b"", "cup.jpg"), 422, "cup.jpg: the image file is empty."),
        (upload(png()[:60]), 422, "cup.png: the image can&#x27;t be read"),
        (upload(bomb(9000, 9000)), 422, "9000 x 9000 pixels; at most 50 million are read"),
        (upload(bomb(60000, 60000)), 422, "could be decompression bomb"),
        (upload(b"x" * 2**21), 413, "The upload is too large; a picture may have 1 MB."),
        ({"data": QUESTIONS}, 400, "There is no picture"),
        ({"files": {"picture": ("cup.png", png())}}, 400, "There is no question"),
        ({**upload(png()), "data": {"questions": "what?\n" * 11}}, 400, "at most 10 questions"),
        ({**upload(png()), "data": {"questions": "w" * 2001}}, 400, "of 2000 letters together"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, ""),
    ],
)
def test_what_cannot_be_answered_gets_a_sentence_and_the_form(
    fake: FakePipeline, given: dict[str, Any], code: int, says: str
) -> None:
    with client_of(fake, bytes=2**20) as client:
        refused = client.post("/", **given)
        assert refused.status_code == code
        assert says in refused.text
        assert 'role="alert"' in refused.text
        assert "<form" in refused.text
        assert client.post("/", **upload(png())).status_code == 200, "it goes on"


def test_an_upload_that_hides_its_size_is_cut_off(fake: FakePipeline) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="picture"; filename="a"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 2**16

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with client_of(fake, bytes=2**20) as client:
        refused = client.post("/", content=parts(), headers=headers)
    assert refused.status_code == 413


def test_many_at_once_are_refused_and_later_ones_answered(fake: FakePipeline) -> None:
    fake.may_answer.clear()
    with client_of(fake, at_once=1) as client, ThreadPoolExecutor(1) as others:
        first = others.submit(client.post, "/", **upload(png()))
        assert fake.asked.acquire(timeout=60)
        refused = client.post("/", **upload(png()))
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert "at most 1 are at once" in refused.text
        fake.may_answer.set()
        assert first.result(60).status_code == 200
        assert client.post("/", **upload(png())).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(fake: FakePipeline) -> None:
    fake.may_answer.clear()
    with client_of(fake, seconds=0.2, at_once=1) as client:
        late = client.post("/", **upload(png()))
        assert "took longer than 0.2 seconds" in late.text
        # The thread is still at it, so the next one would only wait.
        assert client.post("/", **upload(png())).status_code == 429
        fake.may_answer.set()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such words."), "no such words."),
        (ZeroDivisionError("secret"), "ZeroDivision"),
    ],
)
def test_an_error_while_answering_gets_a_sentence_and_the_form(
    client: TestClient, fake: FakePipeline, error: Exception, said: str
) -> None:
    fake.error = error
    page = client.post("/", **upload(png())).text
    assert said in page
    assert "secret" not in page
    assert page.index('class="waiting"') < page.index('role="alert"') < page.index("<form")
    fake.error = None
    assert "Answer: <b>red</b>" in client.post("/", **upload(png())).text


@contextmanager
def slow_upload(url: str) -> Iterator[socket.socket]:
    """A client that has sent the first byte of an upload, which the server is reading."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"-")
        yield client


def test_a_slow_upload_holds_up_nobody_and_ends_with_a_sentence(fake: FakePipeline) -> None:
    httpx = pytest.importorskip("httpx")
    with serving(fake, Limits(at_once=1, uploads=2)) as url:
        with slow_upload(url):
            answered = httpx.post(url, **upload(png()), timeout=PATIENCE)
            assert "Answer: <b>red</b>" in answered.text, "it takes no place of those who wait"
            with slow_upload(url):
                refused = httpx.post(url, **upload(png()), timeout=PATIENCE)
                assert refused.status_code == 429
                assert "at most 2 are at once" in refused.text
        # Those who gave up leave their places.
        wait_until(lambda: httpx.post(url, **upload(png()), timeout=PATIENCE).status_code == 200)
    with serving(fake, Limits(seconds=0.2)) as url, slow_upload(url) as client:
        said = b"".join(iter(partial(client.recv, 2**16), b""))  # to the connection's end
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"The upload took longer than 0.2 seconds." in said


def test_another_sites_name_for_this_machine_is_refused(fake: FakePipeline) -> None:
    with client_of(fake) as client:
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": URL}, 200),
        ({"sec-fetch-site": "same-origin", "origin": URL}, 200),
    ],
)
def test_forms_of_other_sites_are_refused(
    client: TestClient, headers: dict[str, str], code: int
) -> None:
    assert client.post("/", **upload(png()), headers=headers).status_code == code


def test_odd_requests_get_a_sentence(fake: FakePipeline) -> None:
    made = client_of(fake)
    made.headers["content-type"] = "multipart/form-data; boundary=x; charset=utf-7"
    parts = [
        b'name="picture"; filename="a.png"\r\n\r\n' + png(),
        b'name="questions"\r\n\r\nwhat +2AA-?',  # a lone surrogate
    ]
    body = b"".join(b"--x\r\nContent-Disposition: form-data; " + p + b"\r\n" for p in parts)
    with made as client:
        for headers, says in (
            ({}, "has bytes that are no text"),
            ({"content-length": "many"}, "(Content-Length) is no number"),
        ):
            refused = client.post("/", content=body + b"--x--\r\n", headers=headers)
            assert refused.status_code == 400
            assert says in refused.text


def test_it_listens_on_this_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command._parser().parse_args([])
    assert arguments.host == "127.0.0.1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            command.main(["--port", port])
    assert ended.value.code == 2
    assert f"--port {port}: can't listen there" in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 2
    assert "pip install 'lavis_ext[serve]'" in capsys.readouterr().err


def test_config_keys_are_listed_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lavis_ext.serve.app")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert keys.owners()


@contextmanager
def serving(pipeline: Any, limits: Limits | None = None) -> Iterator[str]:
    """The address of the page, served in a thread."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(application(pipeline, limits), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture
def served() -> Iterator[tuple[str, Pipeline]]:
    options = ["model.captioner.sampling.num_captions=6"]
    pipeline = load_pipeline(options=options, device="cpu")
    with serving(pipeline) as url:
        yield url, pipeline


def test_the_page_says_what_is_being_answered_until_the_answer_comes(
    fake: FakePipeline, tmp_path: Path
) -> None:
    executable = find_browser()
    if executable is None:
        pytest.skip("there is no Chromium")
    picture = tmp_path / "cup.png"
    picture.write_bytes(png())
    seen = "[...document.querySelectorAll('.waiting')].filter(e => e.offsetHeight).length"
    fake.may_answer.clear()
    with serving(fake) as url, browser_page(executable, tmp_path / "profile") as page:
        page.open(url)
        assert page.run(seen) == 0
        page.choose_file("input[type=file]", picture)
        page.run("document.querySelector('textarea').value = 'what?\\nwhere?'")
        page.run("document.querySelector('button').click()")
        page.wait(f"{seen} === 1")
        said = page.run("document.querySelector('.waiting').textContent")
        assert said == "Answering 2 questions about cup.png …"
        page.screenshot(tmp_path / "waiting.png")
        fake.may_answer.set()
        page.wait("document.querySelectorAll('.answer').length === 2")
        assert page.run(seen) == 0
        assert page.run("document.querySelectorAll('form').length") == 1
        assert not page.complaints


def test_a_picture_is_asked_in_a_browser(
    served: tuple[str, Pipeline], mini_gqa: Path, tmp_path: Path
) -> None:
    executable = find_browser()
    if executable is None:
        pytest.skip("there is no Chromium")
    url, pipeline = served
    picture = sorted((mini_gqa / "images").iterdir())[0]
    with Image.open(picture) as image:
        expected = pipeline.ask(image, "is there a heart?")[0].answer
    with browser_page(executable, tmp_path / "profile") as page:
        for width, dark in ((390, True), (1440, False)):
            page.open(url, width=width, dark=dark)
            page.choose_file("input[type=file]", picture)
            page.run("document.querySelector('textarea').value = 'is there a heart?'")
            page.run("document.querySelector('button').click()")
            page.wait("document.querySelectorAll('.panels svg').length === 4")
            assert page.run("document.querySelector('.answer b').textContent") == expected
            assert page.run("document.querySelector('textarea').value") == "is there a heart?"
            assert page.run("document.documentElement.scrollWidth") <= width
            page.screenshot(tmp_path / f"{width}.png", whole=True)
        assert not page.complaints
        assert all(made.startswith((url, "data:")) for made in page.requests)
