"""Validity and plausibility: whether answers are in the question's scope."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.gqa.questions import GqaQuestion

COMMON_CHOICES = ("color", "material", "shape")
"""Valid answers to "What do they have in common?", regardless of the choices file."""


class AnswerChoices(NamedTuple):
    """Answers in a question's scope, such as colors, and those observed for its objects."""

    valid: Collection[str]
    plausible: Collection[str]


def within_choices(
    questions: Sequence[GqaQuestion],
    predictions: Mapping[str, str],
    choices: Iterable[tuple[str, AnswerChoices]],
) -> tuple[Values, Values]:
    """Validity and plausibility of each question's prediction, 1 or 0.

    Hudson and Manning (2019), section 4.4. Questions whose detailed type has "Common" in it have
    fixed choices, as in GQA's evaluation script.

    Args:
        questions: N questions.
        predictions: answers by id.
        choices: id and choices of questions, in any order, iterated once; missing questions get
            NaN.
    """
    numbers = {question.id: number for number, question in enumerate(questions)}
    valid, plausible = np.full((2, len(questions)), np.nan)
    for name, choice in choices:
        number = numbers.get(name)
        if number is None:
            continue
        prediction = predictions[name]
        if "Common" in (questions[number].detailed or ""):
            valid[number] = plausible[number] = prediction in COMMON_CHOICES
        else:
            valid[number] = prediction in choice.valid
            plausible[number] = prediction in choice.plausible
    return valid, plausible
