"""The page's web application: one form, one picture at a time through the model.

Nothing of an upload is kept, and the page has no program.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from lavis_ext.ask.pipeline import Pipeline, check_questions
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import decode_image
from lavis_ext.evaluation.answer_page import PAGE_END, page_html, page_start, picture_html
from lavis_ext.evaluation.html_head import POLICY
from lavis_ext.serve.form import TITLE, WAITED, error_html, form_html, style_html, waiting_html

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": f"{POLICY}; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without any, a browser hides the origin of the form, too
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """Limits of uploads and of work.

    Attributes:
        bytes: size of a request.
        pixels: of a picture, checked before it is decoded.
        questions: about a picture.
        letters: of all questions together.
        seconds: for an upload, and for its answers.
        at_once: pictures that wait or are answered.
        uploads: uploads at once; slow ones hold up no answers.
    """

    bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    questions: int = 10
    letters: int = 2000
    seconds: float = 120.0
    at_once: int = 4
    uploads: int = 16


def application(
    pipeline: Pipeline, limits: Limits | None = None, hosts: tuple[str, ...] = ("127.0.0.1",)
) -> Starlette:
    """The web application.

    Args:
        pipeline: answers the questions, in one thread.
        limits: see :class:`Limits`.
        hosts: names under which it may be called; a page of another site could otherwise reach it
            by a name of its own.
    """
    page = _Page(pipeline, limits or Limits())
    return Starlette(
        routes=[Route("/", page.show, methods=["GET"]), Route("/", page.answer, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])],
        exception_handlers={HTTPException: page.refuse},
    )


class _Page:
    """The form, and what becomes of it."""

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self._pipeline, self._limits = pipeline, limits
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="answering")
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoding")
        self._busy = self._uploads = 0

    async def show(self, request: Request) -> Response:
        return _response(form_html(self._limits))

    async def refuse(self, request: Request, error: Exception) -> Response:
        """The form with a sentence on what was wrong."""
        assert isinstance(error, HTTPException)
        content = error_html(error.detail) + form_html(self._limits)
        return _response(content, status=error.status_code, headers=error.headers)

    async def answer(self, request: Request) -> Response:
        """Answer the questions about the uploaded picture.

        The start of the page, which says what is being answered, is sent before the answers.
        """
        if not _is_from_here(request):
            raise HTTPException(403, "The form was sent by another site; open this page itself.")
        self._check_busy()  # before the upload is read, so that refused ones take no memory
        try:
            name, content, questions = await self._uploaded(request)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        self._check_busy()
        ahead = self._busy
        self._busy += 1
        job: Future[str] | None = None
        try:
            loop, pixels = asyncio.get_running_loop(), self._limits.pixels
            image = await loop.run_in_executor(self._decoder, decode_image, content, name, pixels)
            job = self._worker.submit(self._answered, name, image, questions)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        finally:
            if job is None:
                self._busy -= 1
            else:  # counted until its end, also if nobody waits for it any more
                self._count_until_done(job)
        return StreamingResponse(
            self._page(job, waiting_html(name, len(questions), ahead), questions),
            media_type="text/html",
            headers=HEADERS,
        )

    async def _page(
        self, job: Future[str], waiting: str, questions: list[str]
    ) -> AsyncIterator[str]:
        """The page in two pieces: what is being answered, then the answers and the form."""
        yield page_start(TITLE) + style_html() + waiting
        seconds = self._limits.seconds
        try:
            async with asyncio.timeout(seconds):
                content = await asyncio.wrap_future(job)
        except TimeoutError:
            content = error_html(
                f"The answer took longer than {seconds:g} seconds. Ask fewer questions, or try "
                "again when the machine has less to do."
            )
        except UserError as error:
            content = error_html(str(error))
        except Exception as error:
            log.exception("A question couldn't be answered.")
            content = error_html(
                f"This can't be answered ({type(error).__name__}); the terminal of the page's "
                "program says more."
            )
        yield WAITED + content + form_html(self._limits, "\n".join(questions)) + PAGE_END

    def _check_busy(self) -> None:
        if self._busy >= self._limits.at_once:
            raise _too_many(f"Others are being answered; at most {self._limits.at_once} are")

    async def _uploaded(self, request: Request) -> tuple[str, bytes, list[str]]:
        """What ``_read`` returns, within the limits of time and number."""
        limits = self._limits
        if self._uploads >= limits.uploads:
            raise _too_many(f"Others are uploading pictures; at most {limits.uploads} are")
        self._uploads += 1
        try:
            async with asyncio.timeout(limits.seconds):
                return await self._read(request)
        except TimeoutError:
            raise HTTPException(
                408,
                f"The upload took longer than {limits.seconds:g} seconds.",
                {"Connection": "close"},
            ) from None
        finally:
            self._uploads -= 1

    def _count_until_done(self, job: Future[str]) -> None:
        loop = asyncio.get_running_loop()

        def done(_: Future[str]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and the application with it
                loop.call_soon_threadsafe(self._finished)

        job.add_done_callback(done)

    def _finished(self) -> None:
        self._busy -= 1

    async def _read(self, request: Request) -> tuple[str, bytes, list[str]]:
        """The picture's name and content, and the questions. Raises HTTPException."""
        limits = self._limits
        too_large = HTTPException(
            413,
            f"The upload is too large; a picture may have {limits.bytes / 2**20:.3g} MB.",
            {"Connection": "close"},
        )
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise HTTPException(400, "The upload's size (Content-Length) is no number.")
        if int(length) > limits.bytes:
            raise too_large
        limited = Request(request.scope, _limited(request.receive, limits.bytes, too_large))
        async with limited.form(max_files=1, max_fields=1) as form:
            picture, text = form.get("picture"), form.get("questions")
            if picture is None or isinstance(picture, str) or not picture.filename:
                raise HTTPException(400, "There is no picture; choose or drop one.")
            content = await picture.read()
            name = picture.filename
        written = text if isinstance(text, str) else ""
        questions = [line.strip() for line in written.splitlines() if line.strip()]
        if not questions:
            raise HTTPException(400, "There is no question; write one to a line.")
        if len(questions) > limits.questions or len(written) > limits.letters:
            raise HTTPException(
                400,
                f"Ask at most {limits.questions} questions at once, of {limits.letters} letters "
                "together.",
            )
        try:
            check_questions(questions)
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        return name, content, questions

    def _answered(self, name: str, image: Image.Image, questions: list[str]) -> str:
        """The answers as a part of the page."""
        notes = self._pipeline.notes(questions)
        answered = self._pipeline.ask(image, questions, name)
        remarks = "".join(error_html(note, kind="note") for note in notes)
        return remarks + picture_html(image, name, answered.answered)


def _is_from_here(request: Request) -> bool:
    """Whether a form was sent by this page, or by a program that isn't a browser.

    Browsers send another site's forms here as well, and name it.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _limited(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], most: int, error: Exception
) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """Raise ``error`` once more than ``most`` bytes of a request's body have come."""
    seen = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise error
        return message

    return counted


def _too_many(reason: str) -> HTTPException:
    return HTTPException(
        429,
        f"{reason} at once. Try again in a moment.",
        {"Retry-After": "10", "Connection": "close"},
    )


def _response(content: str, status: int = 200, headers: Any = None) -> Response:
    return HTMLResponse(
        page_html(TITLE, [style_html() + content]),
        status_code=status,
        headers={**HEADERS, **(headers or {})},
    )
