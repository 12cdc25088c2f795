"""Retry writes that fail temporarily, as on a full disk."""

import logging
import time
from collections.abc import Callable

from lavis_ext import distributed

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Retries:
    """Logs a failure once and schedules retries, with pauses that double up to a minute.

    Only the main process logs.

    Attributes:
        failure: error of the last attempt; None after a success and before the first attempt.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failure: str | None = None
        self._clock = clock
        self._pause = FIRST_PAUSE_SECONDS
        self._again = 0.0

    @property
    def due(self) -> bool:
        """Whether a retry is due."""
        return self.failure is not None and self._clock() >= self._again

    def failed(self, failure: str, consequence: str) -> None:
        """Record a failed attempt; the first one in a row is logged with its ``consequence``."""
        if self.failure is None:
            if distributed.is_main_process():
                log.warning("%s. %s", failure, consequence)
            self._pause = FIRST_PAUSE_SECONDS
        self.failure = failure
        self._again = self._clock() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def worked(self, outcome: str) -> None:
        """Record a successful attempt; ``outcome`` is logged if the previous one failed."""
        if self.failure is not None:
            log.info(outcome)
        self.failure = None


def unwritable(what: object, error: OSError) -> str:
    """``"<what> can't be written (<reason>)"``."""
    return f"{what} can't be written ({error.strerror or error})"
