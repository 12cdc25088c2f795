"""Errors that a user can fix, and text that is safe to print."""

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import wraps
from typing import NoReturn, ParamSpec

Arguments = ParamSpec("Arguments")


class UserError(Exception):
    """A mistake in a config, file, record or option, described in one or two sentences.

    The message names the problem, its place (file, key or record) and a remedy.

    Entry points print it without a traceback and exit with code 2. Any other exception is a bug of
    this library and keeps its traceback.
    """


# Control characters except tab and newline, lone surrogates, and bidirectional controls.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


REMEDIES = {
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOSPC: "Free some disk space, or choose another place.",
    errno.EDQUOT: "Free some of your disk quota, or choose another place.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.EACCES: "Choose another place, or ask its owner for access.",
}
"""What to do about errors of the operating system that the user's files cause, never a bug."""


def printable(text: str) -> str:
    """Escape characters that would control a terminal or can't be encoded.

    Questions, answers and ids come from files of unknown origin.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_text(text: str) -> bool:
    """Whether ``text`` can be written in UTF-8.

    Python reads bytes of file names and arguments that are no UTF-8 as lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    match = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def nearest_of(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names closest to ``name``, closest first, without a minimum similarity."""
    return get_close_matches(str(name), list(known), n=count, cutoff=0.0)


def counted(count: int, noun: str) -> str:
    """A number with its noun: ``"1 image"``, ``"2,000 images"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """The first three of ``names`` for a message: ``"a, b, c, ..."``."""
    return f"{', '.join(map(shortened_name, names[:3]))}{', ...' if len(names) > 3 else ''}"


def shortened(text: str, most: int = 60) -> str:
    """Cut ``text`` to one line of at most ``most`` characters, for a message."""
    line = printable(text).replace("\n", "\\n")
    return line if len(line) <= most else f"{line[: most - 3]}..."


def shortened_name(name: str, most: int = 60) -> str:
    """:func:`shortened` in the middle: names of parameters and files differ at their ends."""
    line = printable(name).replace("\n", "\\n")
    head = most // 2 - 3
    return line if len(line) <= most else f"{line[:head]}...{line[head + 3 - most :]}"


def exit_with(error: BaseException) -> NoReturn:
    """Print ``error`` on stderr, a UserError without traceback, and exit.

    The code is 2 for a UserError, 130 for a keyboard interrupt, else 1.
    """
    code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    with suppress(OSError):  # stderr may be a file on a full disk
        if code == 2:
            print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        elif code == 1:
            traceback.print_exception(error)
            sys.stderr.flush()
    raise SystemExit(code) from None


def command(main: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorate an entry point so that a :class:`UserError` ends it with code 2, no traceback.

    So does an error of the operating system with one of ``REMEDIES``. A keyboard interrupt ends it
    with code 130.
    """

    @wraps(main)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        _escape_unencodable_output()
        try:
            main(*args, **kwargs)
        except (UserError, KeyboardInterrupt) as error:
            exit_with(error)
        except OSError as error:
            if error.errno not in REMEDIES:
                raise
            named = isinstance(error.filename, str | bytes)
            where = f"{shortened_name(os.fsdecode(error.filename), 300)}: " if named else ""
            exit_with(UserError(f"{where}{error.strerror}. {REMEDIES[error.errno]}"))
        finally:
            _drop_unwritable_output()

    return run


def _escape_unencodable_output() -> None:
    """Escape characters that the output's encoding lacks; otherwise Python would raise an error.

    Names of files may have bytes that are no text, and few terminals have all of Unicode.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_unwritable_output() -> None:
    """Discard output that a full disk rejects; otherwise Python would exit with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
