"""One answered question with everything that is shown of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from lavis_ext.models.pnp_vqa.answering import PipelineOutput


@dataclass(frozen=True, eq=False)
class Answered:
    """A question about a picture, its answer, and how the model got there.

    Positions on the picture are shares of its sides, from (0, 0) at the top left to (1, 1).
    """

    question: str
    answer: str
    matching: float
    """Probability that question and picture belong together."""
    captions: list[str]
    repeated: int
    """Number of repeated or empty captions that were dropped."""
    heat: npt.NDArray[np.float32]
    """[h, w], the raw heat map on the patches, at least 0."""
    refined: npt.NDArray[np.float32]
    """[H', W'], the heat map refined by the mask."""
    mask: npt.NDArray[np.bool_]
    """[H', W'], union of the points' masks."""
    points: npt.NDArray[np.float32]
    """[P, 2], (x, y) of the heat map's peaks."""

    @classmethod
    def all_of(cls, questions: Sequence[str], output: "PipelineOutput") -> "list[Answered]":
        """Each question of ``PnpVqaFusion.answer``'s ``output``, in its order."""
        return [cls._of(question, output, number) for number, question in enumerate(questions)]

    @classmethod
    def _of(cls, question: str, output: "PipelineOutput", number: int) -> "Answered":
        height, width = output.image_size
        points = _array(output.points[number][output.labels[number] == 1])
        return cls(
            question=question,
            answer=output.answers[number],
            matching=float(output.matching[number]),
            captions=output.captions[number],
            repeated=output.repeated[number],
            heat=_array(output.heat[number].reshape(output.grid)),
            refined=_array(output.refined[number]),
            mask=output.masks[number].cpu().numpy(),
            points=(points / (width, height)).astype(np.float32),
        )

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """Labels of the four pictures: itself, raw heat, points and mask, refined heat."""
        segmented = bool(self.mask.any())
        points = "points" if len(self.points) else "no points"
        return (
            "picture",
            "raw heat" if self.heat.any() else "raw heat: none",
            f"{points}{' and mask' if segmented else ', no mask'}",
            "refined heat" if segmented else "refined heat: as raw",
        )

    def outlines(self) -> list[npt.NDArray[np.float64]]:
        """Closed outlines of the mask, each [K, 2] of (x, y)."""
        if not self.mask.any():
            return []
        from contourpy import contour_generator

        # Padding closes the outlines of masks that touch the picture's edge.
        y, x = (((np.arange(-1, side + 1) + 0.5) / side).clip(0, 1) for side in self.mask.shape)
        generator = contour_generator(x, y, np.pad(self.mask, 1).astype(np.float64))
        lines: Any = generator.lines(0.5)
        return list(lines)


def share_of_maximum(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A heat map in 0..1, as it is drawn."""
    hottest = heat.max()
    return heat / hottest if hottest > 0 else np.zeros_like(heat)


def _array(values: "Tensor") -> npt.NDArray[np.float32]:
    return values.detach().float().cpu().numpy()
