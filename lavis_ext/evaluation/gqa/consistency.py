"""Consistency: accuracy on questions entailed by correctly answered ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.gqa.questions import GqaQuestion


def consistency(
    questions: Sequence[GqaQuestion], predictions: Mapping[str, str], answers: Mapping[str, str]
) -> Values:
    """Accuracy over the entailed questions of each correctly answered question.

    Hudson and Manning (2019), section 4.4. NaN for questions that are answered incorrectly or
    entail no others.

    Args:
        questions: N questions.
        predictions: answers by id, to the questions and all that they entail.
        answers: right answers by id, to all that the questions entail.
    """
    return np.array([_of_one(question, predictions, answers) for question in questions])


def _of_one(
    question: GqaQuestion, predictions: Mapping[str, str], answers: Mapping[str, str]
) -> float:
    if not question.entailed or predictions[question.id] != question.answer:
        return np.nan
    hits = sum(predictions[name] == answers[name] for name in question.entailed)
    return hits / len(question.entailed)
