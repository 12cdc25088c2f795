"""Answers of a split, question by question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from lavis_ext.evaluation.gqa.outcomes import Outcomes
from lavis_ext.evaluation.gqa.scores import GqaScores

if TYPE_CHECKING:
    from lavis_ext.models.pnp_vqa.answering import PipelineOutput

FINEST = 32
"""Cells a side of a heat map that is kept."""
CAPTIONS_KEPT = 10
HOTTEST = 255


@dataclass(frozen=True)
class Trace:
    """How the pipeline got to an answer, small enough to be kept for thousands of questions.

    Attributes:
        raw, refined: heat maps, uint8 [h, w] row by row, 255 the hottest of each; at most
            ``FINEST`` cells a side.
        matching: probability that question and image belong together.
        captions: the first of the captions.
        captions_found: how many there are in all.
    """

    raw: npt.NDArray[np.uint8]
    refined: npt.NDArray[np.uint8]
    matching: float
    captions: Sequence[str]
    captions_found: int

    @classmethod
    def of(cls, output: "PipelineOutput", row: int) -> "Trace":
        """That of the question in ``row``."""
        return cls(
            raw=_kept(output.heat[row].reshape(output.grid)),
            refined=_kept(output.refined[row]),
            matching=float(output.matching[row]),
            captions=output.captions[row][:CAPTIONS_KEPT],
            captions_found=len(output.captions[row]),
        )


@dataclass(frozen=True)
class SplitResult:
    """Answers to a split's questions, and what they are worth.

    Attributes:
        outcomes: the metrics' values of each question.
        scores: the metrics.
        baselines: the same of blind guesses, by name; see ``metrics.BASELINES``.
        shown: ids of the questions that the report shows.
        traces: how the pipeline got to the answers of those, by id; empty for other models.
    """

    outcomes: Outcomes
    scores: GqaScores
    baselines: Mapping[str, GqaScores] = field(default_factory=dict)
    shown: Sequence[str] = ()
    traces: Mapping[str, Trace] = field(default_factory=dict)


def _kept(heat: torch.Tensor) -> npt.NDArray[np.uint8]:
    """A heat map [h, w] in shares of its maximum, as means over at most ``FINEST`` cells a side."""
    height, width = (min(side, FINEST) for side in heat.shape)
    small = F.adaptive_avg_pool2d(heat.detach().float().cpu()[None], (height, width))[0]
    hottest = small.max()
    shares = small / hottest if hottest > 0 else torch.zeros_like(small)
    return (shares * HOTTEST).round().to(torch.uint8).numpy()
