"""This library's log: messages to a terminal, and formats that are safe to print."""

import copy
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

from lavis_ext.common.errors import printable
from lavis_ext.common.tables import Table

log = logging.getLogger("lavis_ext")
PROGRESS = "progress"
"""Attribute of records that a :class:`~lavis_ext.common.progress.ProgressLine` also shows."""


class Printable(logging.Formatter):
    """Escapes terminal control characters, which ids and answers from data may contain."""

    def format(self, record: logging.LogRecord) -> str:
        """The message in one or more lines."""
        return printable(super().format(record))


class TerminalHandler(logging.StreamHandler):
    """Writes to standard output or standard error, which may be a file on a full disk.

    Tables are wrapped to a terminal's width. A terminal's progress is left to ``ProgressLine``.
    """

    def __init__(self, stream: Literal["stdout", "stderr"]) -> None:
        logging.Handler.__init__(self)
        self._stream = stream
        self.setFormatter(Printable("%(message)s"))

    @property
    def stream(self) -> TextIO:
        """Looked up for each message: rich replaces the stream while a progress line is shown."""
        found: TextIO = getattr(sys, self._stream)
        return found

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop progress records on a terminal."""
        if getattr(record, PROGRESS, False) and self.stream.isatty():
            return False
        return super().filter(record)

    def format(self, record: logging.LogRecord) -> str:
        """The message, with tables wrapped to the terminal's width."""
        if isinstance(record.args, tuple) and self.stream.isatty():
            record = copy.copy(record)
            width = shutil.get_terminal_size().columns
            record.args = tuple(
                each.text(width) if isinstance(each, Table) else each for each in record.args or ()
            )
        return super().format(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop a message that can't be written."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def replace_handlers(*handlers: logging.Handler) -> None:
    """Close the log's handlers and replace them."""
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    for handler in handlers:
        log.addHandler(handler)


@contextmanager
def silenced(logger: logging.Logger) -> Iterator[None]:
    """Drop a logger's messages for the time of the block: it logs them again in earnest."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def log_to_stderr() -> None:
    """Send messages to standard error, for commands whose output is a table or JSON."""
    replace_handlers(TerminalHandler("stderr"))
    log.setLevel(logging.INFO)
