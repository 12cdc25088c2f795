"""Count and report non-finite steps and unreadable images."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError, listed
from lavis_ext.datasets.faults import UnreadableImage
from lavis_ext.runners.run_log import RunLog, log

Item = TypeVar("Item")


class SkippedSteps:
    """Counts skipped steps; their flags stay on the device until ``settle`` reads them.

    Args:
        limit: consecutive skipped steps after which training stops.
        run_log: receives a line of kind ``skipped`` with the example ids of each skipped step.

    Attributes:
        total: skipped steps in the whole run.
        in_a_row: current number of consecutive skipped steps.
    """

    def __init__(self, limit: int, run_log: RunLog) -> None:
        self.limit = limit
        self.total = 0
        self.in_a_row = 0
        self._run_log = run_log
        self._pending: list[tuple[int, torch.Tensor, list[str]]] = []

    def note(self, step: int, found: torch.Tensor, ids: list[str]) -> None:
        """Record a step and its example ids; ``found`` is a device flag, 1 if it was skipped."""
        self._pending.append((step, found, ids))

    def settle(self) -> None:
        """Count the steps recorded since the last call. Called by every process.

        Raises UserError, in every process, once ``limit`` is reached.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        # Gradients are summed over processes, so the flags agree.
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
                    f"Training stops at step {step}: the loss or a gradient was not finite in "
                    f"{self.in_a_row} consecutive steps (run.max_skipped_steps). None of them "
                    "changed the weights; their example ids are in log.jsonl under `skipped`. "
                    "Inspect these or lower run.init_lr, then resume from the last state with "
                    "run.resume."
                )
        if self.total > before and distributed.is_main_process():
            log.warning(
                "%d step(s) up to step %d were skipped: non-finite loss or gradient "
                "(%d in the whole run)",
                self.total - before,
                pending[-1][0],
                self.total,
            )


class LeftOut:
    """Counts examples skipped in training because their image can't be read.

    Args:
        limit: maximum number in the whole run; beyond it, training stops.
        run_log: receives a line of kind ``left_out`` for each image and step.

    Attributes:
        total: number so far in the whole run.
    """

    def __init__(self, limit: int, run_log: RunLog) -> None:
        self.limit = limit
        self.total = 0
        self._run_log = run_log
        self._pending: list[tuple[int, UnreadableImage]] = []

    def note(self, step: int, group: Iterable[Any]) -> None:
        """Record the unreadable images of a step's batches."""
        for samples in group:
            self._pending += [(step, image) for image in samples.get("unreadable", ())]

    def settle(self) -> None:
        """Count the images recorded by all processes since the last call. Called by every process.

        Raises UserError, in every process, if ``limit`` is exceeded.
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
                _described([image for _, image in found]),
            )
        if self.total > self.limit:
            raise UserError(
                f"{self.total} examples were left out of training because their images can't be "
                f"read, and run.data_faults.most_skipped is {self.limit}: "
                f"{_described([image for _, image in found])} They are in log.jsonl under "
                "`left_out`. Repair the images, then resume from the last state with run.resume."
            )


class Unseen:
    """Counts examples evaluated with a black image because theirs can't be read.

    Args:
        run_log: receives a line of kind ``unseen`` for each image.
    """

    def __init__(self, run_log: RunLog) -> None:
        self._run_log = run_log
        self._images: list[UnreadableImage] = []

    def add(self, images: Iterable[UnreadableImage]) -> None:
        """Record unreadable images, such as those of an interrupted evaluation."""
        self._images += images

    def noted(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of an evaluation, recording their unreadable images."""
        for samples in batches:
            self.add(samples.get("unreadable", ()))
            yield samples

    def report(self, split: str, step: int) -> None:
        """Log the unreadable images. Called by every process."""
        found = _gathered(self._images)
        for image in sorted(found):
            self._run_log.write("unseen", step, {"split": split, **image._asdict()})
        if found and distributed.is_main_process():
            log.warning(
                "%d example(s) of '%s' were evaluated with a black image and count like others: %s",
                sum(len(image.ids) for image in found),
                split,
                _described(found),
            )


def _gathered(items: list[Item]) -> list[Item]:
    """The items of all processes; skips the gather if there are none."""
    (most,) = distributed.greatest([len(items)])
    return distributed.gather(items) if most else []


def _described(images: list[UnreadableImage]) -> str:
    ids = sorted({image.image_id for image in images})
    return f"{len(ids)} image(s) can't be read ({listed(ids)}). {images[0].reason}"
