"""Accuracy, over all questions and by kind of question."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lavis_ext.evaluation.gqa.questions import GqaQuestion

Values: TypeAlias = npt.NDArray[np.float64]
"""A metric's value for each question [N]; NaN where it doesn't concern the question."""

BREAKDOWNS = ("structural", "semantic", "detailed", "steps", "words")
"""Attributes of a question that accuracy is broken down by. GQA's script lacks ``detailed``."""


def right(questions: Sequence[GqaQuestion], predictions: Mapping[str, str]) -> Values:
    """1 where the prediction is the right answer, else 0.

    GQA's script compares the texts as they stand, and so does this: no normalization.
    """
    return np.array([float(predictions[q.id] == q.answer) for q in questions])


def binary(questions: Sequence[GqaQuestion], right: Values) -> Values:
    """``right`` of the questions that aren't open: verify, logical, choose and compare."""
    return np.where([q.structural not in (None, "query") for q in questions], right, np.nan)


def open_(questions: Sequence[GqaQuestion], right: Values) -> Values:
    """``right`` of the open questions, those of structural type ``query``."""
    return np.where([q.structural == "query" for q in questions], right, np.nan)


def by_kind(questions: Sequence[GqaQuestion], breakdown: str) -> dict[str, npt.NDArray[np.intp]]:
    """The numbers of the questions of each kind, kinds in order; ``breakdown`` as ``BREAKDOWNS``.

    Questions of which the kind isn't known are in none.
    """
    kinds = [getattr(question, breakdown) for question in questions]
    members: dict[str | int, list[int]] = {}
    for number, kind in enumerate(kinds):
        if kind is not None:
            members.setdefault(kind, []).append(number)
    return {str(kind): np.array(members[kind]) for kind in sorted(members)}
