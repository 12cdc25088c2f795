"""Distribution: chi-square of predicted against right answers within question groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lavis_ext.evaluation.bootstrap import Codes, Values
from lavis_ext.evaluation.gqa.questions import GqaQuestion


class AnswerDistribution:
    """Counts of correct and of predicted answers by global group."""

    def __init__(self, questions: Sequence[GqaQuestion], predictions: Mapping[str, str]) -> None:
        grouped = [question for question in questions if question.group is not None]
        self._grouped = np.flatnonzero([question.group is not None for question in questions])
        cells: dict[Any, int] = {}
        groups: dict[Any, int] = {}
        self._right: Codes = np.array(
            [cells.setdefault((q.group, q.answer), len(cells)) for q in grouped], np.intp
        )
        given = np.array([cells.get((q.group, predictions[q.id]), -1) for q in grouped], np.intp)
        self._among_right = given >= 0
        self._given: Codes = given[self._among_right]
        self._group: Codes = np.array(
            [groups.setdefault(group, len(groups)) for group, _ in cells], np.intp
        )
        self._cells = len(cells)

    def __len__(self) -> int:
        """Number of questions with a group."""
        return len(self._grouped)

    def chi_square(self, weights: Values) -> float:
        """Pearson's chi-square of predicted against correct answers, weighted by group size.

        Hudson and Manning (2019), section 4.4, and the division by 100 of GQA's evaluation script.
        Answers that are never correct in their group don't count. Lower is better.

        Args:
            weights: weight of each question [N]; ones for the statistic itself.

        Returns:
            The statistic; NaN if no question of positive weight has a group.
        """
        weights = weights[self._grouped]
        expected = np.bincount(self._right, weights, self._cells)
        observed = np.bincount(self._given, weights[self._among_right], self._cells)
        present = expected > 0
        if not present.any():
            return float("nan")
        squares = np.zeros(self._cells)
        squares[present] = (observed[present] - expected[present]) ** 2 / expected[present]
        sizes = np.bincount(self._group, expected)
        return float(np.bincount(self._group, squares) @ sizes / sizes.sum() / 100)
