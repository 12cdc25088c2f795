"""A score beside that of a question-only answerer: metrics of runs, and a sentence."""

from collections.abc import Mapping, Sequence

from lavis_ext.common.metrics import Metric
from lavis_ext.evaluation.bootstrap import Values, mean_difference

BLIND = "baseline_blind"
"""Accuracy of the question-only answerer (``question_only``)."""
ABOVE = "above_blind"
LOW, HIGH = f"{ABOVE}_low", f"{ABOVE}_high"
DIFFERENCE = [Metric(name, "points", better=None) for name in (ABOVE, LOW, HIGH)]
"""Paired difference of the run's accuracy from ``BLIND``, and its 95 % interval over images."""
AT_THE_END = dict.fromkeys((BLIND, ABOVE, LOW, HIGH), "evaluations at the end of a run have it")
"""Reasons for missing metrics in validations, by name."""


def above_blind(
    own: Values, blind: Values, image_ids: Sequence[str], resamples: int, seed: int
) -> dict[str, float]:
    """Metrics of accuracies [N] of the same questions: ``BLIND`` and ``DIFFERENCE``."""
    found = mean_difference(own, blind, image_ids, resamples, seed)
    named = {ABOVE: found.value, LOW: found.low, HIGH: found.high}
    points = {name: 100 * each for name, each in named.items() if each is not None}
    return {BLIND: float(blind.mean())} | points


def beside_blind(metrics: Mapping[str, float]) -> str:
    """How a run's accuracy compares with the question-only answerer's, to end a headline with.

    Empty without ``BLIND``.
    """
    if BLIND not in metrics:
        return ""
    difference = metrics[ABOVE]
    interval = ""
    if LOW in metrics:
        interval = f", 95 % interval {metrics[LOW]:+.1f} to {metrics[HIGH]:+.1f}"
    if metrics.get(LOW, difference) > 0:
        return f"; {difference:.1f} points above a question-only answerer{interval}"
    return (
        f". Not above a question-only answerer, which sees no image: {100 * metrics[BLIND]:.1f} % "
        f"(difference {difference:+.1f} points{interval})."
    )
