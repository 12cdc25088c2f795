"""Figures that a run logs, selects by and reports: their names, units and directions."""

from collections.abc import Mapping

from lavis_ext.evaluation.gqa.outcomes import LOWER_IS_BETTER, METRICS
from lavis_ext.evaluation.gqa.scores import GqaScores

ACCURACY = "answer_accuracy"
FIGURE_OF_METRIC = {metric: metric for metric in METRICS} | {
    "accuracy": ACCURACY,
    "binary": f"{ACCURACY}_binary",
    "open": f"{ACCURACY}_open",
}
"""GQA's accuracies beside those of the objectives, such as ``itm_accuracy``."""


def figures_of(scores: GqaScores) -> dict[str, float]:
    """GQA's metrics, and accuracy by structural type, as a run's figures."""
    figures = {FIGURE_OF_METRIC[name]: figure.value for name, figure in scores.metrics.items()}
    structural = scores.breakdowns.get("structural", {})
    return figures | {f"{ACCURACY}_{kind}": figure.value for kind, figure in structural.items()}


def reasons_of(not_computed: Mapping[str, str]) -> dict[str, str]:
    """Why figures are missing, by their names."""
    return {FIGURE_OF_METRIC[name]: reason for name, reason in not_computed.items()}


def lower_is_better(figure: str) -> bool:
    """Whether less of a figure is better: losses, and what counts mistakes."""
    return figure in LOWER_IS_BETTER or figure.endswith(("loss", "outside_vocabulary"))


def is_share(figure: str) -> bool:
    """Whether a figure is a share, shown in percent."""
    shares = {*FIGURE_OF_METRIC.values()} - LOWER_IS_BETTER
    return figure in shares or any(part in figure for part in ("accuracy", "baseline", "grounding"))
