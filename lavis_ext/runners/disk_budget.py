"""Disk space needed by a run, checked before it starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import free_space, size_in_words
from lavis_ext.models.base import TrainableModel
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.state import KEPT, state_paths

MOMENTS = 2
"""AdamW's two moments, each the size of its parameter."""
RANK_BYTES = 2**15
"""Size of a process's random states."""
FACTS_BYTES = 2**16
"""Size of config, versions, tensor names and the small files beside the states."""


@dataclass(frozen=True)
class DiskBudget:
    """Size of a run's files in bytes; ``str()`` describes them.

    Attributes:
        state: bytes of a state.
        weights: bytes of a file of weights.
        epochs: number of weights files kept by ``run.save_freq``.
    """

    state: int
    weights: int
    epochs: int

    @classmethod
    def of(cls, model: TrainableModel, plan: TrainingPlan) -> "DiskBudget":
        """The budget of a run; only the trained parameters of ``model`` are unfrozen."""
        trained = [p for p in model.parameters() if p.requires_grad]
        changing = [
            buffer
            for module in model.modules()
            if any(p.requires_grad for p in module.parameters())
            for buffer in module.buffers(recurse=False)
        ]
        epochs = plan.steps // plan.steps_per_epoch
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
        """Bytes of all files while the next state is written beside the kept ones.

        At worst, each kept state has its own file of best weights.
        """
        return (KEPT + 1) * (self.state + self.weights) + self.epochs * self.weights

    @property
    def kept(self) -> int:
        """Bytes that a finished run leaves: its states, best weights and epochs' weights."""
        return KEPT * self.state + (1 + self.epochs) * self.weights

    def check(self, folder: Path, weights_name: str) -> None:
        """Raise UserError if the disk of ``folder`` lacks space for the run's files.

        Files already there from a resumed run are subtracted.
        """
        there = [*state_paths(folder), *folder.glob(f"{weights_name}_*.safetensors")]
        needed, free = self.needed - sum(path.stat().st_size for path in there), free_space(folder)
        if needed <= free:
            return
        fewer = ", set run.save_freq higher" if self.epochs else ""
        raise UserError(
            f"{folder}: the run's files need {size_in_words(needed)} more ({self}), and "
            f"{size_in_words(free)} are free. Free some disk space{fewer}, or set a folder on "
            "another disk with run.output_dir."
        )

    def __str__(self) -> str:
        epochs = f" and {self.epochs} of run.save_freq" if self.epochs else ""
        return (
            f"{KEPT} states of {size_in_words(self.state)} and the next one, their best weights of "
            f"{size_in_words(self.weights)} each{epochs}"
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
