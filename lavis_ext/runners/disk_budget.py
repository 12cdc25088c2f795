"""The disk space that a run needs, known before it starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import room_in, size_in_words
from lavis_ext.models.base import TrainableModel
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.state import KEPT, state_paths

MOMENTS = 2
"""AdamW's, each as large as what it is of."""
RANK_BYTES = 2**15
"""Random states of a process."""
FACTS_BYTES = 2**16
"""Config, versions, names of tensors, and the small files beside the states."""


@dataclass(frozen=True)
class DiskBudget:
    """Bytes that a run's files take. ``str()`` says it in words.

    Attributes:
        state: bytes of a state.
        weights: bytes of a file of weights.
        epochs: files of weights that ``run.save_freq`` keeps.
    """

    state: int
    weights: int
    epochs: int

    @classmethod
    def of(cls, model: TrainableModel, plan: TrainingPlan) -> "DiskBudget":
        """The budget of a run of this plan; ``model`` is frozen but for what is trained."""
        trained = [p for p in model.parameters() if p.requires_grad]
        changing = [
            buffer
            for module in model.modules()
            if any(p.requires_grad for p in module.parameters())
            for buffer in module.buffers(recurse=False)
        ]
        epochs = plan.steps // plan.steps_an_epoch
        return cls(
            state=(1 + MOMENTS) * _bytes(trained)
            + _bytes(changing)
            + RANK_BYTES * distributed.world_size()
            + FACTS_BYTES,
            weights=_bytes(model.exported_state().values()) + FACTS_BYTES,
            epochs=epochs // plan.run.save_freq if plan.run.save_freq else 0,
        )

    @property
    def needed(self) -> int:
        """Bytes of all files when the next state is written beside those that are kept.

        Each kept state has best weights, at worst of its own.
        """
        return (KEPT + 1) * (self.state + self.weights) + self.epochs * self.weights

    def check(self, folder: Path, weights_name: str) -> None:
        """Raise UserError if the run's files don't fit beside ``folder``'s, or what it is made in.

        What the run has there already, because it goes on, is not needed once more.
        """
        there = [*state_paths(folder), *folder.glob(f"{weights_name}_*.safetensors")]
        needed, free = self.needed - sum(path.stat().st_size for path in there), room_in(folder)
        if needed <= free:
            return
        fewer = ", set run.save_freq higher" if self.epochs else ""
        raise UserError(
            f"{folder}: the run's files need {size_in_words(needed)} more ({self}), and "
            f"{size_in_words(free)} are free. Make room{fewer}, or name a folder on another disk "
            "with run.output_dir."
        )

    def __str__(self) -> str:
        epochs = f" and {self.epochs} of run.save_freq" if self.epochs else ""
        return (
            f"{KEPT} states of {size_in_words(self.state)} and the next one, their best weights of "
            f"{size_in_words(self.weights)} each{epochs}"
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
