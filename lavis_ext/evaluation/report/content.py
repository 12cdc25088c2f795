"""From results to what the page is filled with: plain containers that JSON can hold."""

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.figures import figures_of
from lavis_ext.evaluation.gqa.outcomes import LOWER_IS_BETTER, METRICS
from lavis_ext.evaluation.gqa.questions import GqaQuestion
from lavis_ext.evaluation.gqa.scores import Figure, GqaScores
from lavis_ext.evaluation.report.confusions import confusions
from lavis_ext.evaluation.report.curves import read_curves
from lavis_ext.evaluation.report.thumbnails import thumbnails
from lavis_ext.evaluation.result import SplitResult, Trace
from lavis_ext.evaluation.table import headline, shown


@dataclass(frozen=True)
class ReportedSplit:
    """A split in the report.

    Attributes:
        figures: all figures by name.
        result: what is known of the answers; None where there are none.
        questions: texts of the questions that the page shows, by id.
        images: where their images are; None for a page without images.
    """

    figures: Mapping[str, float]
    result: SplitResult | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    images: ImageFolder | None = None


def report_content(
    title: str,
    facts: Mapping[str, str],
    splits: Mapping[str, ReportedSplit],
    log: Path | None = None,
) -> dict[str, Any]:
    """What the page shows.

    Args:
        title: what was evaluated.
        facts: what else there is to say of it, by label.
        splits: results by split.
        log: ``log.jsonl`` of the training run, if there is one.
    """
    return {
        "title": title,
        "facts": [[label, text] for label, text in facts.items()],
        "splits": [_split(name, split) for name, split in splits.items()],
        "images": _images(splits.values()),
        "curves": read_curves(log) if log is not None else [],
        "heatColours": _heat_colours(),
    }


def _split(name: str, split: ReportedSplit) -> dict[str, Any]:
    result = split.result
    if result is None:
        return {"name": name, "headline": "", "others": _others(split.figures, set())}
    told = {*figures_of(result.scores), *(f"baseline_{each}" for each in result.baselines)}
    questions = {question.id: place for place, question in enumerate(result.outcomes.questions)}
    return {
        "name": name,
        "headline": headline(name, split.figures),
        "questions": result.scores.questions,
        "images": result.scores.images,
        "others": _others(split.figures, told),
        "metrics": [_metric(metric, result) for metric in METRICS],
        "breakdowns": {
            breakdown: [
                _with_baselines(kind, figure, result.baselines, breakdown)
                for kind, figure in kinds.items()
            ]
            for breakdown, kinds in result.scores.breakdowns.items()
        },
        "confusions": asdict(
            confusions([q.answer for q in result.outcomes.questions], result.outcomes.predictions)
        ),
        "examples": [
            _example(result, questions[shown_id], split.questions.get(shown_id, ""))
            for shown_id in result.shown
        ],
    }


def _metric(metric: str, result: SplitResult) -> dict[str, Any]:
    row: dict[str, Any] = {"name": metric, "lower": metric in LOWER_IS_BETTER}
    figure = result.scores.metrics.get(metric)
    if figure is None:
        return {**row, "reason": result.scores.not_computed[metric]}
    baselines = {name: scores.metrics.get(metric) for name, scores in result.baselines.items()}
    return {
        **row,
        **_figure(figure),
        "baselines": {name: each.value for name, each in baselines.items() if each is not None},
    }


def _with_baselines(
    kind: str, figure: Figure, baselines: Mapping[str, GqaScores], breakdown: str
) -> dict[str, Any]:
    return {
        "name": kind,
        **_figure(figure),
        "baselines": {
            name: scores.breakdowns[breakdown][kind].value for name, scores in baselines.items()
        },
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {name: _finite(value) for name, value in asdict(figure).items()}


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: an interval has one where no resample asks such a question."""
    return None if value is None or not math.isfinite(value) else value


def _others(figures: Mapping[str, float], told: set[str]) -> list[list[str]]:
    return [[name, shown(name, value)] for name, value in figures.items() if name not in told]


def _example(result: SplitResult, place: int, text: str) -> dict[str, Any]:
    question: GqaQuestion = result.outcomes.questions[place]
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
        "matching": _finite(trace.matching),
        "captions": list(trace.captions),
        "captionsFound": trace.captions_found,
    }


def _map(heat: npt.NDArray[np.uint8]) -> dict[str, Any]:
    height, width = heat.shape
    cells = base64.b64encode(np.ascontiguousarray(heat).tobytes()).decode()
    return {"width": width, "height": height, "cells": cells}


def _images(splits: Any) -> dict[str, str]:
    wanted: dict[str, ImageFolder] = {}
    for split in splits:
        if split.result is not None and split.images is not None:
            ids = {question.id: question.image_id for question in split.result.outcomes.questions}
            wanted |= {ids[name]: split.images for name in split.result.shown}
    folders = {id(folder): folder for folder in wanted.values()}
    found: dict[str, str] = {}
    for key, folder in folders.items():
        names = [name for name, of in wanted.items() if id(of) == key]
        found |= thumbnails(folder, names)
    return found


def _heat_colours() -> list[list[int]]:
    """Colours from no heat to the hottest, those of the pictures of single answers."""
    # Drawing is imported here because matplotlib takes a second.
    from matplotlib import colormaps

    from lavis_ext.evaluation.picture import HEAT_COLOURS

    colours = colormaps[HEAT_COLOURS](np.linspace(0, 1, 256), bytes=True)
    listed: list[list[int]] = np.asarray(colours)[:, :3].tolist()
    return listed
