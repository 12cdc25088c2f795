"""Metric values per question; ``scores`` averages them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.gqa import accuracy
from lavis_ext.evaluation.gqa.choices import AnswerChoices, within_choices
from lavis_ext.evaluation.gqa.consistency import consistency
from lavis_ext.evaluation.gqa.distribution import AnswerDistribution
from lavis_ext.evaluation.gqa.metrics import METRICS
from lavis_ext.evaluation.gqa.questions import GqaQuestion, entailed_ids


@dataclass(frozen=True)
class Outcomes:
    """Metric values for each of N questions.

    Attributes:
        questions: the questions.
        predictions: predicted answers in the same order.
        values: by metric, the value for each question [N], NaN if it doesn't apply. The metric is
            their mean.
        distribution: counts for ``distribution``, which has no values per question.
        not_computed: reasons for missing ``METRICS``, by name.
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
    """Compute all metrics supported by the inputs.

    Args:
        questions: the balanced questions.
        predictions: answers by id, to all of them and, for consistency, to all that they entail.
        answers: right answers to the entailed questions by id; needed for consistency.
        choices: see ``within_choices``; needed for validity and plausibility.
        grounding: scores by id of all questions; needed for grounding.
        reasons: specific reasons for missing inputs, by metric.
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
        "validity": "needs a choices file",
        "plausibility": "needs a choices file",
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


def possible_metrics(questions: Sequence[GqaQuestion]) -> frozenset[str]:
    """Metrics supported by the questions' annotations if all files are given.

    Other data in GQA's layout may have only ``question``, ``imageId`` and ``answer``.
    """
    needs = {
        "binary": "structural",
        "open": "structural",
        "validity": "structural",
        "plausibility": "structural",
        "consistency": "entailed",
        "grounding": "objects",
        "distribution": "group",
    }
    known = {
        name for name in needs.values() if any(getattr(q, name) is not None for q in questions)
    }
    return frozenset(name for name in METRICS if needs.get(name) in (None, *known))


def missing_answers(questions: Sequence[GqaQuestion], answers: Mapping[str, str]) -> list[str]:
    """Ids of entailed questions without a known answer, in order."""
    return sorted(entailed_ids(questions) - answers.keys())
