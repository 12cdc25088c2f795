"""Answers to a split's questions, with outcomes and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from lavis_ext.evaluation.gqa.outcomes import Outcomes
from lavis_ext.evaluation.gqa.scores import GqaScores

if TYPE_CHECKING:
    from lavis_ext.models.pnp_vqa.answering import PipelineOutput

FINEST = 32
"""Maximum cells per side of a stored heat map."""
CAPTIONS_KEPT = 10
HOTTEST = 255


@dataclass(frozen=True)
class Trace:
    """Intermediate results of an answer, small enough to keep for thousands of questions.

    Attributes:
        raw, refined: heat maps, uint8 [h, w], with a maximum of 255 and at most ``FINEST`` cells
            per side.
        matching: probability that question and image belong together.
        captions: first captions.
        captions_found: total number of captions.
    """

    raw: npt.NDArray[np.uint8]
    refined: npt.NDArray[np.uint8]
    matching: float
    captions: Sequence[str]
    captions_found: int

    @classmethod
    def of(cls, output: "PipelineOutput", row: int) -> "Trace":
        """Trace of the question in ``row``."""
        return cls(
            raw=_kept(output.heat[row].reshape(output.grid)),
            refined=_kept(output.refined[row]),
            matching=float(output.matching[row]),
            captions=output.captions[row][:CAPTIONS_KEPT],
            captions_found=len(output.captions[row]),
        )

    def as_json(self) -> dict[str, Any]:
        """The trace as JSON values."""
        return asdict(self) | {"raw": self.raw.tolist(), "refined": self.refined.tolist()}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Trace":
        """Trace of the values that ``as_json`` returned."""
        heat = {name: np.array(values[name], np.uint8) for name in ("raw", "refined")}
        return cls(**{**values, **heat})


@dataclass(frozen=True)
class SplitResult:
    """Outcomes and scores of the answers to a split's questions.

    Attributes:
        outcomes: metric values per question.
        scores: metrics.
        baselines: scores of blind baselines by name; see ``metrics.BASELINES``.
        shown: ids of the questions in the report.
        traces: the pipeline's intermediate results for these, by id; empty for other models.
        blind: outcomes of a question-only answerer; None for none.
        above_blind: metrics of the comparison with it (``above_blind``).
    """

    outcomes: Outcomes
    scores: GqaScores
    baselines: Mapping[str, GqaScores] = field(default_factory=dict)
    shown: Sequence[str] = ()
    traces: Mapping[str, Trace] = field(default_factory=dict)
    blind: Outcomes | None = None
    above_blind: Mapping[str, float] = field(default_factory=dict)


def _kept(heat: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Scale a heat map [h, w] to its maximum, averaged to at most ``FINEST`` cells per side."""
    height, width = (min(side, FINEST) for side in heat.shape)
    small = F.adaptive_avg_pool2d(heat.detach().float().cpu()[None], (height, width))[0]
    hottest = small.max()
    shares = small / hottest if hottest > 0 else torch.zeros_like(small)
    return (shares * HOTTEST).round().to(torch.uint8).numpy()
