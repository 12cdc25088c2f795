"""The section ``run.data_faults``: retries and handling of unreadable data."""

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
    """Retries for unreadable data, and the response to persistent faults."""

    retries: int = option(
        3,
        "Retries of an image, with growing pauses, and consecutive restarts of the loader's "
        "workers.",
        at_least=0,
    )
    then: str = option(
        "stop",
        "Response to an image that stays unreadable: stop the run, or skip its examples.",
        choices=("stop", "skip"),
    )
    most_skipped: int = option(
        1000, "Skipped examples allowed in the whole run before it stops.", at_least=0
    )
    stall_seconds: float = option(
        300.0,
        "Seconds without a batch before the loader's workers count as stalled.",
        above=0,
    )

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each retry."""
        for attempt in range(self.retries):
            yield min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)


class UnreadableImage(NamedTuple):
    """An unreadable image, and the ids of the batch's examples about it."""

    image_id: str
    reason: str
    ids: list[str]


def patiently(read: Callable[[], Item], faults: DataFaultsConfig) -> Item:
    """Call ``read``, retrying after each pause while it raises UserError."""
    for pause in faults.pauses():
        try:
            return read()
        except UserError as error:
            log.warning("%s Retrying in %g s.", error, pause)
            time.sleep(pause)
    return read()
