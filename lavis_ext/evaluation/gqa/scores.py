"""From the outcomes of single questions to metrics with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lavis_ext.evaluation.gqa.accuracy import BREAKDOWNS, Values, by_kind
from lavis_ext.evaluation.gqa.bootstrap import (
    RESAMPLES,
    image_codes,
    percentile_interval,
    resampled_images,
    sums_by_image,
)
from lavis_ext.evaluation.gqa.distribution import Codes
from lavis_ext.evaluation.gqa.metrics import METRICS
from lavis_ext.evaluation.gqa.outcomes import Outcomes

OVERALL = "metrics"
Name = tuple[str, str]
"""``OVERALL`` and a metric, or a breakdown and a kind of question."""


@dataclass(frozen=True, slots=True)
class Score:
    """The value of a metric.

    Attributes:
        value: a share of 1, as a rule; ``grounding`` can exceed it, ``distribution`` is a
            statistic from 0 on.
        count: the questions that it is of.
        low, high: its interval; None where none was asked for.
    """

    value: float
    count: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GqaScores:
    """All metrics of one set of predictions.

    Attributes:
        questions, images: how many were scored.
        metrics: by name, in the order of ``METRICS``.
        breakdowns: accuracy by kind of question, for each of ``BREAKDOWNS`` that is known.
        not_computed: the reason, for each metric that isn't there.
    """

    questions: int
    images: int
    metrics: Mapping[str, Score]
    breakdowns: Mapping[str, Mapping[str, Score]]
    not_computed: Mapping[str, str]


@dataclass(frozen=True)
class Resampled:
    """Scores, and ``samples``: their values [B] in each of B resamples."""

    scores: Mapping[Name, Score]
    samples: Mapping[Name, npt.NDArray[np.float64]]


def score(outcomes: Outcomes, resamples: int = RESAMPLES, seed: int = 0) -> GqaScores:
    """All metrics, with 95 % bootstrap intervals over images unless ``resamples`` is 0."""
    resampled = resample(outcomes, resamples, seed)
    scores = dict(resampled.scores)
    if resamples:
        for name, each in scores.items():
            low, high = percentile_interval(resampled.samples[name])
            scores[name] = Score(each.value, each.count, low, high)
    return GqaScores(
        questions=len(outcomes.questions),
        images=len({question.image_id for question in outcomes.questions}),
        metrics={
            metric: scores[OVERALL, metric] for metric in METRICS if (OVERALL, metric) in scores
        },
        breakdowns={
            breakdown: {kind: each for (part, kind), each in scores.items() if part == breakdown}
            for breakdown in BREAKDOWNS
            if any(part == breakdown for part, _ in scores)
        },
        not_computed=outcomes.not_computed,
    )


def resample(outcomes: Outcomes, resamples: int, seed: int) -> Resampled:
    """All metrics, and their values in resamples of the images (see ``resampled_images``)."""
    images = image_codes([question.image_id for question in outcomes.questions])
    by_image = _sums_by_image(outcomes, images)
    sums, counts = (np.stack(part, axis=1) for part in zip(*by_image.values(), strict=True))
    scores = {
        name: Score(float(total / count), int(count))
        for name, total, count in zip(by_image, sums.sum(axis=0), counts.sum(axis=0), strict=True)
    }
    distribution = outcomes.distribution
    if len(distribution):
        statistic = distribution.chi_square(np.ones(len(images)))
        scores[OVERALL, "distribution"] = Score(statistic, len(distribution))
    means = []
    statistics: list[float] = []
    for weights in resampled_images(len(sums), resamples, seed):
        with np.errstate(invalid="ignore"):  # a kind that no image of the resample asks about
            means.append((weights @ sums) / (weights @ counts))
        if len(distribution):
            statistics += [distribution.chi_square(draw[images]) for draw in weights]
    if not means:
        return Resampled(scores, {})
    samples = dict(zip(by_image, np.concatenate(means).T, strict=True))
    if len(distribution):
        samples[OVERALL, "distribution"] = _centred(np.array(statistics), statistic)
    return Resampled(scores, samples)


def _sums_by_image(outcomes: Outcomes, images: Codes) -> dict[Name, tuple[Values, Values]]:
    size = int(images.max()) + 1
    sums = {(OVERALL, name): sums_by_image(images, v, size) for name, v in outcomes.values.items()}
    right = outcomes.values["accuracy"]
    for breakdown in BREAKDOWNS:
        for kind, members in by_kind(outcomes.questions, breakdown).items():
            sums[breakdown, kind] = sums_by_image(images[members], right[members], size)
    return sums


def _centred(samples: npt.NDArray[np.float64], statistic: float) -> npt.NDArray[np.float64]:
    """Resampled chi-squares about the statistic itself.

    Every resample adds its own chance to the squares, so they are larger than the statistic on
    average, by more than they are wide where the predictions are good.
    """
    return (samples - np.nanmean(samples) + statistic).clip(min=0)
