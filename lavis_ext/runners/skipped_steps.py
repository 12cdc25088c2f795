"""Steps that were skipped because the loss or a gradient wasn't finite."""

from typing import Any

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.runners.run_log import RunLog, log


class SkippedSteps:
    """Counts them. What the device found is looked at only when ``settle`` is called.

    Args:
        limit: skipped steps in a row after which training stops.
        run_log: gets a line of kind ``skipped`` with the question ids of each such step.

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

    def note(self, step: int, found: torch.Tensor, questions: list[str]) -> None:
        """A step of this process's ``questions``; ``found`` is 1 on the device if it is skipped."""
        self._pending.append((step, found, questions))

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
        for (step, _, questions), skipped in zip(pending, found, strict=True):
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            if not skipped:
                continue
            self.total += 1
            ids: list[Any] = distributed.gather(questions)
            self._run_log.write("skipped", step, {"question_ids": ids})
            if self.in_a_row >= self.limit:
                raise UserError(
                    f"Training stops at step {step}: the loss or a gradient wasn't finite in "
                    f"{self.in_a_row} steps in a row (run.max_skipped_steps). None of them has "
                    "changed the weights; the ids of their questions are in log.jsonl under "
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
