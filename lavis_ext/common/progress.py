"""Progress of long work: one line, rewritten on a terminal and repeated periodically elsewhere."""

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

from lavis_ext.common.errors import printable
from lavis_ext.common.logs import PROGRESS, TerminalHandler

if TYPE_CHECKING:
    # Imported on first use, because importing rich takes 0.1 s.
    from rich.live import Live

SECONDS_A_LINE = 5.0
"""Interval between lines in a file or a pipe."""
SECONDS_A_REFRESH = 0.25
"""Interval between updates of the line on a terminal."""


class ProgressLine:
    """A progress line. Messages printed in the meantime appear above it.

    Use ``logged`` or ``on_stderr`` to create one. ``close`` removes the line from the terminal; the
    next ``update`` shows it again.

    Args:
        write: writes a line to a log or stream; None for none.
        terminal: terminal that shows the line; None for none.
        seconds: interval between calls of ``write``; None for ``SECONDS_A_LINE``.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None,
        terminal: TextIO | None,
        seconds: float | None = None,
    ) -> None:
        self._write, self._terminal = write, terminal
        self._seconds = SECONDS_A_LINE if seconds is None else seconds
        self._last_line = time.monotonic()
        self._shown = 0.0
        self._live: Live | None = None

    @classmethod
    def logged(cls, logger: logging.Logger, *, only_terminal: bool = False) -> Self:
        """A line in a log, rewritten in place if the log goes to a terminal.

        ``only_terminal`` keeps it out of the log itself.
        """
        if not logger.isEnabledFor(logging.INFO):
            return cls(None, None)

        def write(text: str) -> None:
            logger.info("%s", text, extra={PROGRESS: True})

        return cls(None if only_terminal else write, _terminal_of(logger))

    @classmethod
    def on_stderr(cls, seconds: float) -> Self:
        """A line on standard error, printed every ``seconds`` if that is no terminal."""
        if sys.stderr.isatty():
            return cls(None, sys.stderr)
        return cls(lambda text: print(text, file=sys.stderr, flush=True), None, seconds)

    def update(self, text: str) -> None:
        """Show ``text`` if a line is due."""
        now = time.monotonic()
        shows = self._terminal is not None and now - self._shown >= SECONDS_A_REFRESH
        writes = self._write is not None and now - self._last_line >= self._seconds
        if not (shows or writes):
            return
        line = printable(text)
        if shows:
            self._shown = now
            self._show(line)
        if writes and self._write is not None:
            self._last_line = now
            self._write(line)

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._shown = 0.0

    def _show(self, line: str) -> None:
        from rich.text import Text

        if self._live is None:
            self._live = _live(self._terminal)
            self._live.start()
        # Never wrapped, so that lines above it aren't overwritten.
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _terminal_of(logger: logging.Logger) -> TextIO | None:
    """The terminal that the logger or one of its parents writes to."""
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if isinstance(handler, TerminalHandler) and handler.stream.isatty():
                return handler.stream
        at = at.parent if at.propagate else None
    return None


def _live(terminal: TextIO | None) -> "Live":
    from rich.console import Console
    from rich.live import Live

    class VisibleCursor(Console):
        """Keeps the cursor visible, since a killed process couldn't restore it."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Live(
        console=VisibleCursor(file=terminal, highlight=False),
        auto_refresh=False,  # a thread could hold a lock while loader workers fork
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
