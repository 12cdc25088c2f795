"""Writing that may fail for a while, as on a full disk."""

import logging
import time
from collections.abc import Callable

from lavis_ext import distributed

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Retries:
    """Tells of a failure once, and when to try again: after pauses that double up to a minute.

    Where every process keeps one of its own, the main process tells.

    Attributes:
        failure: what the last try failed of; None after one that worked, and before the first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failure: str | None = None
        self._clock = clock
        self._pause = FIRST_PAUSE_SECONDS
        self._again = 0.0

    @property
    def due(self) -> bool:
        """Whether a try has failed and the pause after it is over."""
        return self.failure is not None and self._clock() >= self._again

    def failed(self, failure: str, consequence: str) -> None:
        """A try failed; ``consequence`` is said with the first failure in a row."""
        if self.failure is None:
            if distributed.is_main_process():
                log.warning("%s. %s", failure, consequence)
            self._pause = FIRST_PAUSE_SECONDS
        self.failure = failure
        self._again = self._clock() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def worked(self, outcome: str) -> None:
        """A try worked; ``outcome`` is said if the one before it failed."""
        if self.failure is not None:
            log.info(outcome)
        self.failure = None


def unwritable(what: object, error: OSError) -> str:
    """``"<what> can't be written (<reason>)"``."""
    return f"{what} can't be written ({error.strerror or error})"
