"""Steps that aren't finite and images that can't be read: counted and told."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.faults import UnreadableImage
from lavis_ext.runners.run_log import RunLog, log

Item = TypeVar("Item")


class SkippedSteps:
    """Counts them. What the device found is looked at only when ``settle`` is called.

    Args:
        limit: skipped steps in a row after which training stops.
        run_log: gets a line of kind ``skipped`` with the ids of each such step.

    Attributes:
        total: skipped steps of the run.
        in_a_row: skipped steps since the last that wasn't.
    """

    def __init__(self, limit: int, run_log: RunLog) -> None:
        self.limit = limit
        self.total = 0
        self.in_a_row = 0
        self._run_log = run_log
        self._pending: list[tuple[int, torch.Tensor, list[str]]] = []

    def note(self, step: int, found: torch.Tensor, ids: list[str]) -> None:
        """A step of these examples of this process; ``found`` is 1, on the device, if skipped."""
        self._pending.append((step, found, ids))

    def settle(self) -> None:
        """Count the steps noted since the last call. Entered by every process.

        Raises UserError, in every process, where ``limit`` is reached.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        # Gradients are summed over processes, so all of them have found the same.
        found = torch.stack([each for _, each, _ in pending]).tolist()
        before = self.total
        for (step, _, own), skipped in zip(pending, found, strict=True):
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if not skipped:
                continue
            self.total += 1
            ids: list[Any] = distributed.gather(own)
            self._run_log.write("skipped", step, {"ids": ids})
            if self.in_a_row >= self.limit:
                raise UserError(
                    f"Training stops at step {step}: the loss or a gradient wasn't finite in "
                    f"{self.in_a_row} steps in a row (run.max_skipped_steps). None of them has "
                    "changed the weights; the ids of their examples are in log.jsonl under "
                    "`skipped`. Look at these, or lower run.init_lr, and go on from the last state "
                    "with run.resume."
                )
        if self.total > before and distributed.is_main_process():
            log.warning(
                "%d step(s) up to step %d were skipped: the loss or a gradient wasn't finite "
                "(%d in the whole run)",
                self.total - before,
                pending[-1][0],
                self.total,
            )


class LeftOut:
    """Counts examples that training leaves out.

    Args:
        limit: such examples in the whole run, after more of which training stops.
        run_log: gets a line of kind ``left_out`` for each image and step.

    Attributes:
        total: such examples of the run.
    """

    def __init__(self, limit: int, run_log: RunLog) -> None:
        self.limit = limit
        self.total = 0
        self._run_log = run_log
        self._pending: list[tuple[int, UnreadableImage]] = []

    def note(self, step: int, group: Iterable[Any]) -> None:
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
        count = sum(len(image.ids) for _, image in found)
        self.total += count
        if distributed.is_main_process():
            log.warning(
                "%d example(s) up to step %d were left out, %d in the whole run: %s",
                count,
                max(step for step, _ in found),
                self.total,
                _told([image for _, image in found]),
            )
        if self.total > self.limit:
            raise UserError(
                f"{self.total} examples were left out of training, because their images can't be "
                f"read, and run.data_faults.most_skipped is {self.limit}: "
                f"{_told([image for _, image in found])} They are in log.jsonl under `left_out`. "
                "Mend the images and go on from the last state with run.resume."
            )


class Unseen:
    """Counts examples that an evaluation gives a black image, so that none is missing.

    Args:
        run_log: gets a line of kind ``unseen`` for each image.
    """

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log
        self._images: list[UnreadableImage] = []

    def noted(self, batches: Iterable[Any]) -> Iterator[Any]:
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
                "%d example(s) of '%s' were given a black image, and count like others: %s",
                sum(len(image.ids) for image in found),
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
