"""Images that couldn't be read, where ``run.data_faults.then`` is ``skip``: counted and told."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from lavis_ext import distributed
from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.faults import UnreadableImage
from lavis_ext.datasets.gqa.dataset import FusionSamples
from lavis_ext.runners.run_log import RunLog, log

Item = TypeVar("Item")


class LeftOut:
    """Counts questions that training leaves out.

    Args:
        limit: such questions in the whole run, after more of which training stops.
        run_log: gets a line of kind ``left_out`` for each image and step.

    Attributes:
        total: such questions of the run.
    """

    def __init__(self, limit: int, run_log: RunLog) -> None:
        self.limit = limit
        self.total = 0
        self._run_log = run_log
        self._pending: list[tuple[int, UnreadableImage]] = []

    def note(self, step: int, group: Iterable[FusionSamples]) -> None:
        """The batches of a step."""
        for samples in group:
            self._pending += [(step, image) for image in samples.get("unreadable", ())]

    def settle(self) -> None:
        """Count what all processes have noted since the last call. Entered by every process.

        Raises UserError, in every process, where ``limit`` is exceeded.
        """
        found = _gathered(self._pending)
        self._pending = []
        if not found:
            return
        for step, image in sorted(found):
            self._run_log.write("left_out", step, image._asdict())
        questions = sum(len(image.question_ids) for _, image in found)
        self.total += questions
        if distributed.is_main_process():
            log.warning(
                "%d question(s) up to step %d were left out, %d in the whole run: %s",
                questions,
                max(step for step, _ in found),
                self.total,
                _told([image for _, image in found]),
            )
        if self.total > self.limit:
            raise UserError(
                f"{self.total} questions were left out of training, because their images can't be "
                f"read, and run.data_faults.most_skipped is {self.limit}: "
                f"{_told([image for _, image in found])} They are in log.jsonl under `left_out`. "
                "Mend the images and go on from the last state with run.resume."
            )


class Unseen:
    """Counts questions that an evaluation asks about a black image, so that none is missing.

    Args:
        run_log: gets a line of kind ``unseen`` for each image.
    """

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log
        self._images: list[UnreadableImage] = []

    def noted(self, batches: Iterable[FusionSamples]) -> Iterator[FusionSamples]:
        """The batches of an evaluation."""
        for samples in batches:
            self._images += samples.get("unreadable", ())
            yield samples

    def tell(self, split: str, step: int) -> None:
        """Say what there was. Entered by every process."""
        found = _gathered(self._images)
        for image in sorted(found):
            self._run_log.write("unseen", step, {"split": split, **image._asdict()})
        if found and distributed.is_main_process():
            log.warning(
                "%d question(s) of '%s' were asked about a black image, and count like others: %s",
                sum(len(image.question_ids) for image in found),
                split,
                _told(found),
            )


def _gathered(items: list[Item]) -> list[Item]:
    """The items of all processes; where nobody has any, that is all they tell each other."""
    (most,) = distributed.greatest([len(items)])
    return distributed.gather(items) if most else []


def _told(images: list[UnreadableImage]) -> str:
    ids = sorted({image.image_id for image in images})
    return f"{len(ids)} image(s) can't be read ({listed(ids)}). {images[0].reason}"
