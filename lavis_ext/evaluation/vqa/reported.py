"""VQA's part of a report: accuracy by kind of question, confusions, and examples."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lavis_ext.common.errors import counted
from lavis_ext.common.metrics import Metric
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.bootstrap import INTERVALS, Score
from lavis_ext.evaluation.report.confusions import confusions
from lavis_ext.evaluation.report.content import MetricRow, ReportedSplit, breakdown
from lavis_ext.evaluation.vqa.metrics import ACCURACY, headline
from lavis_ext.evaluation.vqa.scoring import VqaResult

TITLES = {"answer_type": "Answer type", "question_type": "Question type"}
BASELINE_LABELS = {"blind": "question only", "form": "by form", "overall": "one answer"}
CURVES = {ACCURACY: {"baseline_form": "baseline, by form"}}


def reported(
    split: str,
    metrics: Mapping[str, float],
    result: VqaResult | None,
    images: ImageFolder,
    declared: Mapping[str, Metric],
) -> ReportedSplit:
    """VQA's part of the report for a split; ``result`` is None if the answers aren't known."""
    if result is None:
        note = "This evaluation has no answers, or the correct ones aren't known."
        return ReportedSplit(metrics, declared, rows=[], note=note, extra={"curves": CURVES})
    scores, baselines = result.scores, result.baselines
    own = {*scores.metrics(), *(f"baseline_{name}" for name in baselines)}
    guessed = {name: each.accuracy.value for name, each in baselines.items()}
    breakdowns = [
        breakdown(
            name,
            TITLES[name],
            [
                _row(
                    Metric(kind, "share"),
                    each,
                    {n: b.breakdowns[name][kind].value for n, b in baselines.items()},
                )
                for kind, each in kinds.items()
            ],
            more=name == "question_type",
        )
        for name, kinds in scores.breakdowns.items()
    ]
    return ReportedSplit(
        metrics={name: value for name, value in metrics.items() if name not in own},
        declared=declared,
        rows=[_row(Metric(ACCURACY, "share"), scores.accuracy, guessed)],
        note=(
            f"{counted(scores.questions, 'question')} about {counted(scores.images, 'image')}. "
            f"{INTERVALS}"
        ),
        headline=headline(split, metrics),
        examples=[_example(result, place) for place in result.shown],
        images=images,
        extra={
            "noun": "question",
            "count": scores.questions,
            "baselines": {n: label for n, label in BASELINE_LABELS.items() if n in baselines},
            "breakdowns": breakdowns,
            "confusions": asdict(
                confusions([each.answer for each in result.questions], result.predictions)
            ),
            "filters": {name: TITLES[name] for name in scores.breakdowns},
            "curves": CURVES,
        },
    )


def _row(metric: Metric, score: Score, baselines: Mapping[str, float]) -> MetricRow:
    return MetricRow(metric, score.value, score.count, score.low, score.high, baselines)


def _example(result: VqaResult, place: int) -> dict[str, Any]:
    question = result.questions[place]
    counts = Counter(question.answers).most_common()
    several = ", ".join(f"{answer} ({count})" for answer, count in counts)
    return {
        "id": question.id,
        "image": question.image_id,
        "question": question.text,
        "answer": several if len(counts) > 1 else question.answer,
        "prediction": result.predictions[place],
        "answer_type": question.answer_type,
        "question_type": question.question_type,
    }
