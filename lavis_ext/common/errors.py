"""The error type for what a user can mend: a wrong config, file, record or option."""

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
    """What was wrong, where (file, key or record) and what to do, in one or two sentences.

    Entry points print it without a traceback and exit with code 2. Anything else that is raised
    is a bug of this library and keeps its traceback.
    """


# Controls but for tab and end of line, halves of characters, and what turns the direction of text.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """``text`` for a terminal or a log: what would steer a terminal, or can't be encoded, escaped.

    Questions, answers and ids come from files that anybody may have written.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    match = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def listed(names: Sequence[str]) -> str:
    """The first three of ``names`` for a message: ``"a, b, c, ..."``."""
    return f"{', '.join(map(shortened, names[:3]))}{', ...' if len(names) > 3 else ''}"


def shortened(text: str, most: int = 60) -> str:
    """``text`` in a line of at most ``most`` characters, for a message."""
    line = printable(text).replace("\n", "\\n")
    return line if len(line) <= most else f"{line[: most - 3]}..."


def exit_with(error: BaseException) -> NoReturn:
    """Print ``error`` on stderr, one of the user's without a traceback, and end the process.

    The code is 2 for the user's errors, 130 for an interrupt from the keyboard, else 1.
    """
    code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    with suppress(OSError):  # it may go to a file on a full disk
        if code == 2:
            print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        elif code == 1:
            traceback.print_exception(error)
            sys.stderr.flush()
    raise SystemExit(code) from None


def command(main: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorate an entry point so that a :class:`UserError` ends it with code 2, no traceback.

    An interrupt from the keyboard ends it with code 130.
    """

    @wraps(main)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            main(*args, **kwargs)
        except (UserError, KeyboardInterrupt) as error:
            exit_with(error)
        finally:
            _drop_unwritable_output()

    return run


def _drop_unwritable_output() -> None:
    """Python would turn any exit code into 120 for output that a full disk doesn't take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
