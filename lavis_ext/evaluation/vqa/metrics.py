"""Names and units of the metrics of VQA in runs."""

from collections.abc import Mapping

from lavis_ext.common.metrics import Metric
from lavis_ext.evaluation.above_blind import DIFFERENCE, beside_blind

ACCURACY = "vqa_accuracy"
ANSWER_TYPES = {
    "yes/no": f"{ACCURACY}_yes_no",
    "number": f"{ACCURACY}_number",
    "other": f"{ACCURACY}_other",
    "unanswerable": f"{ACCURACY}_unanswerable",
}
"""VQA's and VizWiz's answer types, with the name of each accuracy."""
BASELINES = ("overall", "form", "blind")
"""Blind baselines: the most frequent answer overall, that to questions of the same form, and a
question-only answerer (``question_only``)."""
SCORED = [Metric(ACCURACY, "share"), *(Metric(name, "share") for name in ANSWER_TYPES.values())]
BESIDE = [
    *(Metric(f"baseline_{name}", "share", better=None) for name in BASELINES),
    *DIFFERENCE,
    Metric("answers_outside_vocabulary", better="min"),
]
"""Baselines reported in runs."""


def headline(split: str, metrics: Mapping[str, float]) -> str:
    """How a split's accuracy compares with the baselines; empty without answers."""
    if ACCURACY not in metrics:
        return ""
    found = f"{split}: VQA accuracy {100 * metrics[ACCURACY]:.1f} %"
    names = ("baseline_overall", "baseline_form")
    if guesses := [metrics[name] for name in names if name in metrics]:
        found += f"; the most frequent answer has {100 * max(guesses):.1f} %"
    return found + beside_blind(metrics)
