"""Save the best weights of a run, and restore them in a resumed run."""

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
    """Manages ``NAME_best.safetensors`` of a run, in its main process.

    Each state belongs with the best weights as of its step. Once better weights replace them, they
    are kept in ``NAME_best_stepSTEP.safetensors`` until no remaining state needs them.

    Args:
        folder: the folder of the run.
        name: ``weights_name`` of the model.
        key: config key of such a file, for error messages.

    Attributes:
        path: path of the file.
        step: step of the best weights; None before the first validation.
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
        """Write better weights or, if that fails, keep a copy of them in memory."""
        self.step = weights.step
        self._waiting = weights
        self._try()
        if self._waiting is not None:
            on_host = {name: t.detach().cpu().clone() for name, t in weights.state.items()}
            self._waiting = replace(weights, state=on_host)

    def retry(self) -> None:
        """Retry a failed write once its pause has passed."""
        if self._retries.due:
            self._try()

    def write(self) -> None:
        """Write pending weights. Raises OSError if it fails."""
        if self._waiting is None:
            return
        if self._written is not None and self._written != self._waiting.step:
            self._keep_earlier(self._written)
        self._waiting.save(self.path)
        self._written, self._waiting = self._waiting.step, None
        self._retries.worked(
            f"{self.path} is writable again and has the weights of step {self._written}"
        )

    def tidy(self) -> None:
        """Remove earlier weights that no remaining state needs."""
        needed = best_steps(self.path.parent) - {self._written}
        names = {self._file_of(step).name for step in needed if step is not None}
        for path in self.path.parent.glob(f"{self._earlier}*"):
            if path.name not in names:
                path.unlink()

    def restore(self, step: int | None) -> None:
        """Restore the best weights recorded in a state, those of ``step``.

        Raises UserError if they are missing or damaged.
        """
        self.step = self._written = step
        if step is not None:
            self._restore_file(step)
        self.tidy()

    def _restore_file(self, step: int) -> None:
        if (earlier := self._file_of(step)).is_file():
            earlier.replace(self.path)
        if not self.path.is_file():
            raise UserError(
                f"run.resume: {self.path}, the run's best weights, is missing; restore that file."
            )
        found = TrainedWeights.load(self.path, key=self._key).step
        if found != step:
            raise UserError(
                f"run.resume: {self.path} has the weights of step {found}, but the state's best "
                f"weights are of step {step}; restore that file."
            )

    def _try(self) -> None:
        try:
            self.write()
        except OSError as error:
            self._retries.failed(
                unwritable(self.path, error),
                "The best weights are kept in memory and no state is saved without them; training "
                "continues and retries.",
            )

    def _file_of(self, step: int) -> Path:
        return self.path.with_name(f"{self._earlier}{step:08d}.safetensors")

    def _keep_earlier(self, step: int) -> None:
        """Link weights that a state still needs to a name that later ones don't overwrite."""
        earlier = self._file_of(step)
        if earlier.exists() or step not in best_steps(self.path.parent):
            return
        try:
            os.link(self.path, earlier)
        except OSError:  # a file system without hard links
            with written_aside(earlier) as aside:
                shutil.copyfile(self.path, aside)
