"""GQA's metrics: names, units and directions, in its own command and in runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lavis_ext.common.metrics import Metric, by_name

if TYPE_CHECKING:
    from lavis_ext.evaluation.gqa.scores import GqaScores

METRICS: Mapping[str, Metric] = by_name(
    [
        Metric("accuracy", "share"),
        Metric("binary", "share"),
        Metric("open", "share"),
        Metric("consistency", "share"),
        Metric("validity", "share"),
        Metric("plausibility", "share"),
        Metric("grounding", "share"),
        Metric("distribution", better="min"),
    ]
)
"""By the names of the authors' script."""
STRUCTURAL = ("choose", "compare", "logical", "query", "verify")
"""GQA's structural types. Runs report accuracy for each."""
BASELINES = ("overall", "form")
"""Blind guesses: the most frequent answer of all, and that to questions of the same form."""

ACCURACY = "answer_accuracy"
IN_RUNS = {name: name for name in METRICS} | {
    "accuracy": ACCURACY,
    "binary": f"{ACCURACY}_binary",
    "open": f"{ACCURACY}_open",
}
"""Names in runs, where objectives have accuracies too, such as ``itm_accuracy``."""
SCORED = [
    *(Metric(IN_RUNS[metric.name], metric.unit, metric.better) for metric in METRICS.values()),
    *(Metric(f"{ACCURACY}_{kind}", "share") for kind in STRUCTURAL),
]
"""The metrics of a run's answers."""
BESIDE = [
    *(Metric(f"baseline_{name}", "share", better=None) for name in BASELINES),
    Metric("answers_outside_vocabulary", better="min"),
]
"""What a run reports beside them."""


def metrics_of(scores: "GqaScores") -> dict[str, float]:
    """A run's metrics: GQA's, and accuracy by structural type."""
    metrics = {IN_RUNS[name]: each.value for name, each in scores.metrics.items()}
    structural = scores.breakdowns.get("structural", {})
    return metrics | {
        f"{ACCURACY}_{kind}": structural[kind].value for kind in STRUCTURAL if kind in structural
    }


def reasons_of(not_computed: Mapping[str, str]) -> dict[str, str]:
    """Why metrics are missing, by their names in runs."""
    return {IN_RUNS[name]: reason for name, reason in not_computed.items()}


def headline(split: str, metrics: Mapping[str, float]) -> str:
    """A split's accuracy against the better baseline, in a sentence; empty without answers."""
    if ACCURACY not in metrics or "baseline_form" not in metrics:
        return ""
    accuracy, form, overall = (
        100 * metrics[name] for name in (ACCURACY, "baseline_form", "baseline_overall")
    )
    better = "form of question" if form >= overall else "whole split"
    gain = accuracy - max(form, overall)
    return (
        f"{split}: {accuracy:.1f} % answered right, {abs(gain):.1f} points "
        f"{'above' if gain >= 0 else 'below'} the most frequent answer to the {better}"
    )
