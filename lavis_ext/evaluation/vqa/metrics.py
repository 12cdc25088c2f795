"""Names and units of the metrics of VQA in runs."""

from collections.abc import Mapping

from lavis_ext.common.metrics import Metric

ACCURACY = "vqa_accuracy"
ANSWER_TYPES = {
    "yes/no": f"{ACCURACY}_yes_no",
    "number": f"{ACCURACY}_number",
    "other": f"{ACCURACY}_other",
    "unanswerable": f"{ACCURACY}_unanswerable",
}
"""VQA's and VizWiz's answer types, with the name of each accuracy."""
BASELINES = ("overall", "form")
"""Blind baselines: the most frequent answer overall, and to questions of the same form."""
SCORED = [Metric(ACCURACY, "share"), *(Metric(name, "share") for name in ANSWER_TYPES.values())]
BESIDE = [
    *(Metric(f"baseline_{name}", "share", better=None) for name in BASELINES),
    Metric("answers_outside_vocabulary", better="min"),
]
"""Baselines reported in runs."""


def headline(split: str, metrics: Mapping[str, float]) -> str:
    """A sentence with a split's accuracy and the better baseline; empty without answers."""
    if ACCURACY not in metrics:
        return ""
    found = f"{split}: VQA accuracy {100 * metrics[ACCURACY]:.1f} %"
    guesses = [metrics[f"baseline_{name}"] for name in BASELINES if f"baseline_{name}" in metrics]
    return f"{found}; the better blind guess has {100 * max(guesses):.1f} %" if guesses else found
