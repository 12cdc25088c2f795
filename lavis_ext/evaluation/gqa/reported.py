"""GQA's part of a report: metrics with intervals and baselines, breakdowns, and examples."""

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from lavis_ext.common.errors import counted
from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.bootstrap import INTERVALS, Score
from lavis_ext.evaluation.gqa.metrics import (
    ACCURACY,
    BASELINES,
    BESIDE,
    METRICS,
    SCORED,
    headline,
    metrics_of,
    notes,
)
from lavis_ext.evaluation.gqa.outcomes import possible_metrics
from lavis_ext.evaluation.gqa.result import SplitResult, Trace
from lavis_ext.evaluation.gqa.scores import GqaScores
from lavis_ext.evaluation.report.confusions import confusions
from lavis_ext.evaluation.report.content import MetricRow, ReportedSplit, breakdown, finite

BREAKDOWN_TITLES = {
    "structural": "Structural type",
    "semantic": "Semantic type",
    "steps": "Reasoning steps",
    "words": "Words of the question",
    "detailed": "Detailed type",
}
BASELINE_LABELS = {"blind": "question only", "form": "by form", "overall": "one answer"}
FILTERS = {"structural": "Structural type", "semantic": "Semantic type"}
HEAT_NOTE = "Heat: how strongly a place indicates that the question belongs to this image."
CURVES = {ACCURACY: {"baseline_form": "baseline, by form"}}
DECLARED = by_name([*SCORED, *BESIDE])


def reported(
    split: str,
    metrics: Mapping[str, float],
    result: SplitResult | None,
    texts: Mapping[str, str],
    images: ImageFolder | None,
    declared: Mapping[str, Metric] = DECLARED,
) -> ReportedSplit:
    """GQA's part of the report for a split.

    Args:
        split: name of the split.
        metrics: all metrics by name.
        result: scores and outcomes of the answers; None without answers.
        texts: questions shown on the page, by id.
        images: folder of their images; None for a page without images.
        declared: units and directions of the metrics.
    """
    if result is None:
        note = "This evaluation has no answers, or the correct ones aren't known."
        return ReportedSplit(metrics, declared, rows=[], note=note, extra={"curves": CURVES})
    own = {*metrics_of(result.scores), *(f"baseline_{each}" for each in result.baselines)}
    possible = possible_metrics(result.outcomes.questions)
    places = {question.id: place for place, question in enumerate(result.outcomes.questions)}
    return ReportedSplit(
        metrics={name: value for name, value in metrics.items() if name not in own},
        declared=declared,
        rows=[
            _row(metric, result)
            for metric in METRICS.values()
            if metric.name in result.scores.metrics or metric.name in possible
        ],
        note=_note(result),
        headline=headline(split, metrics),
        examples=[_example(result, places[each], texts.get(each, "")) for each in result.shown],
        images=images,
        extra={
            "noun": "question",
            "count": result.scores.questions,
            "baselines": {
                name: BASELINE_LABELS[name]
                for name in reversed(BASELINES)
                if name in result.baselines
            },
            "breakdowns": [
                breakdown(
                    name,
                    title,
                    _kinds(name, result),
                    numbers=name in ("steps", "words"),
                    more=name == "detailed",
                )
                for name, title in BREAKDOWN_TITLES.items()
                if result.scores.breakdowns.get(name)
            ],
            "confusions": asdict(
                confusions(
                    [question.answer for question in result.outcomes.questions],
                    result.outcomes.predictions,
                )
            ),
            "filters": FILTERS,
            "heatNote": HEAT_NOTE,
            "curves": CURVES,
        },
    )


def _note(result: SplitResult) -> str:
    note = (
        f"{counted(result.scores.questions, 'question')} about "
        f"{counted(result.scores.images, 'image')}. {INTERVALS}"
    )
    if result.baselines:
        note += (
            " Baselines give the most frequent answer of the training split, to the form of "
            "question or to all; upright strokes in the plots."
        )
    if result.blind is not None:
        note += " Question only: an answerer trained on the same questions without images."
    return " ".join([note, *notes(result.scores)])


def _row(metric: Metric, result: SplitResult) -> MetricRow:
    score = result.scores.metrics.get(metric.name)
    if score is None:
        return MetricRow(metric, reason=result.scores.not_computed[metric.name])
    baselines = {
        name: each.metrics[metric.name].value
        for name, each in result.baselines.items()
        if metric.name in each.metrics
    }
    return _scored(metric, score, baselines)


def _kinds(name: str, result: SplitResult) -> list[MetricRow]:
    def of(scores: GqaScores, kind: str) -> float:
        return scores.breakdowns[name][kind].value

    return [
        _scored(
            Metric(kind, "share"),
            score,
            {baseline: of(scores, kind) for baseline, scores in result.baselines.items()},
        )
        for kind, score in result.scores.breakdowns[name].items()
    ]


def _scored(metric: Metric, score: Score, baselines: Mapping[str, float]) -> MetricRow:
    return MetricRow(metric, score.value, score.count, score.low, score.high, baselines)


def _example(result: SplitResult, place: int, text: str) -> dict[str, Any]:
    question = result.outcomes.questions[place]
    trace = result.traces.get(question.id)
    return {
        "id": question.id,
        "image": question.image_id,
        "question": text,
        "answer": question.answer,
        "prediction": result.outcomes.predictions[place],
        "structural": question.structural,
        "semantic": question.semantic,
        **({} if trace is None else _trace(trace)),
    }


def _trace(trace: Trace) -> dict[str, Any]:
    return {
        "raw": _map(trace.raw),
        "refined": _map(trace.refined),
        "matching": finite(trace.matching),
        "captions": list(trace.captions),
        "captionsFound": trace.captions_found,
    }


def _map(heat: npt.NDArray[np.uint8]) -> dict[str, Any]:
    height, width = heat.shape
    cells = base64.b64encode(np.ascontiguousarray(heat).tobytes()).decode()
    return {"width": width, "height": height, "cells": cells}
