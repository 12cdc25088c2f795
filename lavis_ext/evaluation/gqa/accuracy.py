"""Accuracy, over all questions and by kind of question."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.gqa.questions import GqaQuestion

BREAKDOWNS = ("structural", "semantic", "detailed", "steps", "words")
"""Question attributes for accuracy breakdowns. GQA's script lacks ``detailed``."""


def right(questions: Sequence[GqaQuestion], predictions: Mapping[str, str]) -> Values:
    """1 for correct predictions, else 0.

    Like GQA's script, this compares texts without normalization.
    """
    return np.array([float(predictions[q.id] == q.answer) for q in questions])


def binary(questions: Sequence[GqaQuestion], right: Values) -> Values:
    """``right`` for questions that aren't open: verify, logical, choose and compare."""
    return np.where([q.structural not in (None, "query") for q in questions], right, np.nan)


def open_(questions: Sequence[GqaQuestion], right: Values) -> Values:
    """``right`` for open questions, those of structural type ``query``."""
    return np.where([q.structural == "query" for q in questions], right, np.nan)


def by_kind(questions: Sequence[GqaQuestion], breakdown: str) -> dict[str, npt.NDArray[np.intp]]:
    """Indices of the questions of each kind, sorted by kind; ``breakdown`` as in ``BREAKDOWNS``.

    Questions of unknown kind are left out.
    """
    kinds = [getattr(question, breakdown) for question in questions]
    members: dict[str | int, list[int]] = {}
    for number, kind in enumerate(kinds):
        if kind is not None:
            members.setdefault(kind, []).append(number)
    return {str(kind): np.array(members[kind]) for kind in sorted(members)}
