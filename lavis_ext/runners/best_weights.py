"""The best weights of a run on their way to the disk, and back to a run that goes on."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import written_aside
from lavis_ext.runners.retries import Retries, unwritable
from lavis_ext.runners.state import best_steps


class BestWeights:
    """The file ``NAME_best.safetensors`` of a run, for its main process.

    A state goes with the best weights as of its step. Those that a kept state needs outlast better
    ones, as ``NAME_best_stepSTEP.safetensors``, until it is removed.

    Args:
        folder: the run's folder.
        name: the model's ``weights_name``.
        key: the config's key for such a file, for errors.

    Attributes:
        path: the file.
        step: the step that the best weights are of; None before there are any.
    """

    def __init__(self, folder: Path, name: str, key: str) -> None:
        self.path = folder / f"{name}_best.safetensors"
        self.step: int | None = None
        self._earlier = f"{name}_best_step"
        self._key = key
        self._written: int | None = None
        self._waiting: TrainedWeights | None = None
        self._retries = Retries()

    def take(self, weights: TrainedWeights) -> None:
        """Write better weights or, where they can't be written, keep a copy of them in memory."""
        self.step = weights.step
        self._waiting = weights
        self._try()
        if self._waiting is not None:
            on_host = {name: t.detach().cpu().clone() for name, t in weights.state.items()}
            self._waiting = replace(weights, state=on_host)

    def try_again(self) -> None:
        """Try to write what couldn't be written, if a pause has passed since."""
        if self._retries.due:
            self._try()

    def write(self) -> None:
        """Write what waits to be written. Raises OSError where it can't be."""
        if self._waiting is None:
            return
        if self._written is not None and self._written != self._waiting.step:
            self._set_aside(self._written)
        self._waiting.save(self.path)
        self._written, self._waiting = self._waiting.step, None
        self._retries.worked(f"{self.path} can be written again; it has step {self._written}")

    def tidy(self) -> None:
        """Remove earlier weights that no kept state needs."""
        needed = best_steps(self.path.parent) - {self._written}
        names = {self._file_of(step).name for step in needed if step is not None}
        for path in self.path.parent.glob(f"{self._earlier}*"):
            if path.name not in names:
                path.unlink()

    def go_on(self, step: int | None) -> None:
        """Restore the best weights recorded in a state, which are of ``step``.

        Raises UserError where they aren't in the folder, or are damaged.
        """
        self.step = self._written = step
        if step is not None:
            self._put_back(step)
        self.tidy()

    def _put_back(self, step: int) -> None:
        if (earlier := self._file_of(step)).is_file():
            earlier.replace(self.path)
        if not self.path.is_file():
            raise UserError(
                f"run.resume: {self.path}, the best weights of the run, is missing; put it back."
            )
        found = TrainedWeights.load(self.path, key=self._key).step
        if found != step:
            raise UserError(
                f"run.resume: {self.path} holds weights of step {found}, and the best of the run "
                f"as it was saved are of step {step}; put these back."
            )

    def _try(self) -> None:
        try:
            self.write()
        except OSError as error:
            self._retries.failed(
                unwritable(self.path, error),
                "These best weights are kept in memory, no state of the run is saved without them, "
                "and training goes on and tries again.",
            )

    def _file_of(self, step: int) -> Path:
        return self.path.with_name(f"{self._earlier}{step:08d}.safetensors")

    def _set_aside(self, step: int) -> None:
        """Give weights that a state needs a second name, which stays when the first is taken."""
        earlier = self._file_of(step)
        if earlier.exists() or step not in best_steps(self.path.parent):
            return
        try:
            os.link(self.path, earlier)
        except OSError:  # a file system without hard links
            with written_aside(earlier) as aside:
                shutil.copyfile(self.path, aside)
