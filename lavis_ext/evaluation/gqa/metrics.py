"""GQA's metrics: names, units and directions, in the command and in runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.evaluation.above_blind import DIFFERENCE, beside_blind

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
"""Metrics by the names of the authors' script."""
STRUCTURAL = ("choose", "compare", "logical", "query", "verify")
"""GQA's structural types; runs report accuracy for each."""
BASELINES = ("overall", "form", "blind")
"""Blind baselines: the most frequent answer overall, that to questions of the same form, and a
question-only answerer (``question_only``)."""

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
    *DIFFERENCE,
    Metric("answers_outside_vocabulary", better="min"),
]
"""Baselines reported in runs."""
GROUNDING_NOTE = (
    "Grounding can exceed 100 %: as in the authors' script, an object that both question and "
    "answer name counts twice."
)
BY_VQA_RULES = Metric(f"{ACCURACY}_by_vqa_rules", "share")
"""Accuracy as LAVIS's task ``gqa_reading_comprehension`` has it, see ``right_by_vqa_rules``."""


def metrics_of(scores: "GqaScores") -> dict[str, float]:
    """A run's metrics: GQA's, and accuracy by structural type."""
    metrics = {IN_RUNS[name]: each.value for name, each in scores.metrics.items()}
    structural = scores.breakdowns.get("structural", {})
    return metrics | {
        f"{ACCURACY}_{kind}": structural[kind].value for kind in STRUCTURAL if kind in structural
    }


def reasons_of(not_computed: Mapping[str, str]) -> dict[str, str]:
    """Reasons for missing metrics, by their names in runs."""
    return {IN_RUNS[name]: reason for name, reason in not_computed.items()}


def notes(scores: "GqaScores") -> list[str]:
    """What a reader of the metrics should know, in sentences."""
    grounding = scores.metrics.get("grounding")
    return [GROUNDING_NOTE] if grounding is not None and grounding.value > 1 else []


def headline(split: str, metrics: Mapping[str, float]) -> str:
    """How a split's accuracy compares with the baselines; empty without answers."""
    if ACCURACY not in metrics or "baseline_form" not in metrics:
        return ""
    # Rounded as in tables, so that a reader's difference is this one.
    accuracy, form, overall = (
        round(100 * metrics[name], 1) for name in (ACCURACY, "baseline_form", "baseline_overall")
    )
    better = "form of question" if form >= overall else "whole split"
    gain = accuracy - max(form, overall)
    return (
        f"{split}: {accuracy:.1f} % answered right, {abs(gain):.1f} points "
        f"{'above' if gain >= 0 else 'below'} the most frequent answer to the {better}"
        f"{beside_blind(metrics)}"
    )
