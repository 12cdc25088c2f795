"""The values of all metrics question by question; ``scores`` averages them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lavis_ext.evaluation.gqa import accuracy
from lavis_ext.evaluation.gqa.accuracy import Values
from lavis_ext.evaluation.gqa.choices import AnswerChoices, within_choices
from lavis_ext.evaluation.gqa.consistency import consistency
from lavis_ext.evaluation.gqa.distribution import AnswerDistribution
from lavis_ext.evaluation.gqa.metrics import METRICS
from lavis_ext.evaluation.gqa.questions import GqaQuestion, entailed_ids


@dataclass(frozen=True)
class Outcomes:
    """The metrics' values for each of N questions.

    Attributes:
        questions: the questions.
        predictions: the answers given to them, in their order.
        values: by metric, its value for each question [N], NaN where it doesn't concern the
            question. The metric is their mean.
        distribution: for ``distribution``, which has no value for a single question.
        not_computed: why there are none, for each of the ``METRICS`` that is missing.
    """

    questions: Sequence[GqaQuestion]
    predictions: Sequence[str]
    values: Mapping[str, Values]
    distribution: AnswerDistribution
    not_computed: Mapping[str, str]


def judge(
    questions: Sequence[GqaQuestion],
    predictions: Mapping[str, str],
    *,
    answers: Mapping[str, str] | None = None,
    choices: Iterable[tuple[str, AnswerChoices]] | None = None,
    grounding: Mapping[str, float] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Outcomes:
    """All metrics that can be had from this.

    Args:
        questions: the balanced questions.
        predictions: answers by id, to all of them and, for consistency, to all that they entail.
        answers: right answers by id to what they entail; without them there is no consistency.
        choices: see ``within_choices``; without them there is no validity and no plausibility.
        grounding: scores by id of all questions; without them there is none.
        reasons: why a metric's data are not given, instead of the general words.
    """
    right = accuracy.right(questions, predictions)
    values = {
        "accuracy": right,
        "binary": accuracy.binary(questions, right),
        "open": accuracy.open_(questions, right),
    }
    missing = {
        "binary": "no question has a structural type of that kind",
        "open": "no question has a structural type of that kind",
        "consistency": "it needs the answers to all entailed questions",
        "validity": "it needs a choices file",
        "plausibility": "it needs a choices file",
        "grounding": "it needs attention maps and scene graphs",
        "distribution": "no question belongs to an answer group",
    } | dict(reasons or {})
    if answers is not None:
        values["consistency"] = consistency(questions, predictions, answers)
        missing["consistency"] = "no question that entails others is answered right"
    if choices is not None:
        values["validity"], values["plausibility"] = within_choices(questions, predictions, choices)
    if grounding is not None:
        values["grounding"] = np.array([grounding[question.id] for question in questions])
    values = {name: each for name, each in values.items() if not np.isnan(each).all()}
    distribution = AnswerDistribution(questions, predictions)
    computed = {*values, *(["distribution"] if len(distribution) else [])}
    return Outcomes(
        questions=questions,
        predictions=[predictions[question.id] for question in questions],
        values=values,
        distribution=distribution,
        not_computed={name: missing[name] for name in METRICS if name not in computed},
    )


def missing_answers(questions: Sequence[GqaQuestion], answers: Mapping[str, str]) -> list[str]:
    """Ids of entailed questions without a known answer, in order."""
    return sorted(entailed_ids(questions) - answers.keys())
