"""GQA's data set: questions, and the other files needed by its metrics."""

from typing import Any

from lavis_ext.datasets.gqa.scoring_files import ScoringFiles
from lavis_ext.datasets.questions.dataset import QuestionDataset


class GqaFusionDataset(QuestionDataset):
    """One split of GQA.

    Args:
        files: other files needed by GQA's metrics.
        **parts: arguments of :class:`QuestionDataset`.
    """

    def __init__(self, *, files: ScoringFiles, **parts: Any) -> None:
        super().__init__(**parts)
        self.files = files
