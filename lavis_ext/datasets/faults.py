"""The section ``run.data_faults``: what becomes of a run whose data fail it in the middle."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option

log = logging.getLogger(__name__)

Item = TypeVar("Item")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0


@dataclass
class DataFaultsConfig:
    """How long to bear with data that can't be read, and what follows."""

    retries: int = option(
        3,
        "How often an image is tried again, with growing pauses, and how often in a row the "
        "loader's workers are started again.",
        at_least=0,
    )
    then: str = option(
        "stop",
        "What follows for an image that still can't be read: stop the run, or skip its examples.",
        choices=("stop", "skip"),
    )
    most_skipped: int = option(
        1000, "Examples left out in the whole run; after more the run stops.", at_least=0
    )
    stall_seconds: float = option(
        300.0,
        "Seconds that a batch may take before the loader's workers count as stalled.",
        above=0,
    )

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each further attempt."""
        for attempt in range(self.retries):
            yield min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)


class UnreadableImage(NamedTuple):
    """An image that a batch should have had, and the examples about it."""

    image_id: str
    reason: str
    ids: list[str]


def patiently(read: Callable[[], Item], faults: DataFaultsConfig) -> Item:
    """What ``read`` returns, tried again after each pause where it raises UserError."""
    for pause in faults.pauses():
        try:
            return read()
        except UserError as error:
            log.warning("%s Tried again in %g s.", error, pause)
            time.sleep(pause)
    return read()
