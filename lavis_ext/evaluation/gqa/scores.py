"""Average the outcomes of questions to metrics with bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lavis_ext.evaluation.bootstrap import (
    RESAMPLES,
    Codes,
    Score,
    Values,
    image_codes,
    interval_of,
    percentile_interval,
    resampled_images,
    sums_by_image,
)
from lavis_ext.evaluation.gqa.accuracy import BREAKDOWNS, by_kind
from lavis_ext.evaluation.gqa.metrics import METRICS
from lavis_ext.evaluation.gqa.outcomes import Outcomes

OVERALL = "metrics"
Name = tuple[str, str]
"""(``OVERALL``, metric) or (breakdown, kind of question)."""


@dataclass(frozen=True)
class GqaScores:
    """All metrics of one set of predictions.

    Attributes:
        questions, images: numbers of scored questions and images.
        metrics: metrics by name, in the order of ``METRICS``.
        breakdowns: accuracy by kind of question, for each known one of ``BREAKDOWNS``.
        not_computed: reason for each missing metric.
    """

    questions: int
    images: int
    metrics: Mapping[str, Score]
    breakdowns: Mapping[str, Mapping[str, Score]]
    not_computed: Mapping[str, str]


@dataclass(frozen=True)
class Resampled:
    """Scores of B resamples.

    Attributes:
        scores: scores of the questions themselves, without intervals.
        samples: their values [B] in each resample.
        images: number of images that each of them applies to.
    """

    scores: Mapping[Name, Score]
    samples: Mapping[Name, npt.NDArray[np.float64]]
    images: Mapping[Name, int]


def score(outcomes: Outcomes, resamples: int = RESAMPLES, seed: int = 0) -> GqaScores:
    """All metrics, with 95 % bootstrap intervals over images unless ``resamples`` is 0."""
    resampled = resample(outcomes, resamples, seed)
    scores = dict(resampled.scores)
    if resamples:
        for name, each in scores.items():
            samples = resampled.samples[name]
            if name in resampled.images:
                low, high = interval_of(each.value, samples, resampled.images[name])
            else:
                low, high = percentile_interval(samples)
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
        with np.errstate(invalid="ignore"):  # a kind of question missing from the resample
            means.append((weights @ sums) / (weights @ counts))
        if len(distribution):
            statistics += [distribution.chi_square(draw[images]) for draw in weights]
    if not means:
        return Resampled(scores, {}, {})
    samples = dict(zip(by_image, np.concatenate(means).T, strict=True))
    if len(distribution):
        samples[OVERALL, "distribution"] = _centred(np.array(statistics), statistic)
    asked = {name: int(np.count_nonzero(count)) for name, (_, count) in by_image.items()}
    return Resampled(scores, samples, asked)


def _sums_by_image(outcomes: Outcomes, images: Codes) -> dict[Name, tuple[Values, Values]]:
    size = int(images.max()) + 1
    sums = {(OVERALL, name): sums_by_image(images, v, size) for name, v in outcomes.values.items()}
    right = outcomes.values["accuracy"]
    for breakdown in BREAKDOWNS:
        for kind, members in by_kind(outcomes.questions, breakdown).items():
            sums[breakdown, kind] = sums_by_image(images[members], right[members], size)
    return sums


def _centred(samples: npt.NDArray[np.float64], statistic: float) -> npt.NDArray[np.float64]:
    """Center resampled chi-squares at the statistic itself.

    Resampling noise adds to the squares, so they exceed the statistic on average, for good
    predictions by more than their spread.
    """
    return (samples - np.nanmean(samples) + statistic).clip(min=0)
