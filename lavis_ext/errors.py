"""The error type for what a user can mend: a wrong config, file, record or option."""

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import NoReturn, ParamSpec

Arguments = ParamSpec("Arguments")


class UserError(Exception):
    """What was wrong, where (file, key or record) and what to do, in one or two sentences.

    Entry points print it without a traceback and exit with code 2. Anything else that is raised
    is a bug of this library and keeps its traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    match = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def listed(names: Sequence[str]) -> str:
    """The first three of ``names`` for a message: ``"a, b, c, ..."``."""
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def exit_with(error: BaseException) -> NoReturn:
    """Print ``error`` on stderr, one of the user's without a traceback, and end the process.

    The code is 2 for the user's errors, 130 for an interrupt from the keyboard, else 1.
    """
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    if isinstance(error, KeyboardInterrupt):
        raise SystemExit(130) from None
    traceback.print_exception(error)
    sys.stderr.flush()
    raise SystemExit(1) from None


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

    return run
