"""From reported splits to the content of the page: plain containers that JSON can hold."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.common.metrics import Metric
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.report.curves import read_curves
from lavis_ext.evaluation.report.thumbnails import thumbnails
from lavis_ext.evaluation.table import shown


@dataclass(frozen=True)
class MetricRow:
    """A row of the table of metrics.

    Attributes:
        metric: name, unit and direction.
        value: None for a metric that wasn't computed.
        count: examples behind it.
        low, high: its 95 % interval.
        baselines: the metric's values for baselines, by name.
        reason: why it wasn't computed.
    """

    metric: Metric
    value: float | None = None
    count: int | None = None
    low: float | None = None
    high: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class ReportedSplit:
    """A split in the report.

    An example is a mapping with ``id`` and, as far as they are known, ``image`` (its id),
    ``question`` (the heading), ``prediction``, ``answer`` (the right one), the keys of
    ``extra["filters"]``, heat maps ``raw`` and ``refined`` (``width``,
    ``height`` and ``cells``, base64 of their bytes row by row), ``matching`` (0 to 1),
    ``captions`` and ``captionsFound``.

    Attributes:
        metrics: values by name.
        declared: their units and directions; a metric without has none.
        rows: the table of metrics; by default a row for each metric that is a share.
        note: a text below the table.
        headline: a sentence at the top.
        examples: the examples that are shown.
        images: where their images are; None for a page without images.
        extra: further parts, all optional: ``noun`` for an example (``question``); ``count`` of the
            examples that were evaluated; ``baselines``, labels by name, the first of which is drawn
            in the plots; ``breakdowns``, a list of :func:`breakdown`; ``confusions``; ``filters``,
            labels by key of the examples; ``heatNote``, the meaning of the heat maps; ``curves``,
            by metric the labels of other logged metrics that are drawn in its chart.
    """

    metrics: Mapping[str, float]
    declared: Mapping[str, Metric] = field(default_factory=dict)
    rows: Sequence[MetricRow] | None = None
    note: str = ""
    headline: str = ""
    examples: Sequence[Mapping[str, Any]] = ()
    images: ImageFolder | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def report_content(
    title: str,
    facts: Mapping[str, str],
    splits: Mapping[str, ReportedSplit],
    log: Path | None = None,
    metric: str = "",
) -> dict[str, Any]:
    """The content of the page.

    Args:
        title: what was evaluated.
        facts: further facts about it, by label.
        splits: results by split.
        log: ``log.jsonl`` of the training run, if there is one.
        metric: the metric that selects the best weights; its curve comes right after the loss.
    """
    declared: dict[str, Metric] = {}
    overlays: dict[str, Mapping[str, str]] = {}
    for split in splits.values():
        declared |= split.declared
        overlays |= split.extra.get("curves", {})
    curves = [] if log is None else read_curves(log, declared, metric=metric, overlays=overlays)
    heated = any("raw" in example for split in splits.values() for example in split.examples)
    return {
        "title": title,
        "facts": [[label, text] for label, text in facts.items()],
        "splits": [_split(name, split) for name, split in splits.items()],
        "images": _images(splits.values()),
        "curves": curves,
        "heatColours": _heat_colours() if heated else [],
    }


def breakdown(
    name: str, title: str, rows: Iterable[MetricRow], *, numbers: bool = False, more: bool = False
) -> dict[str, Any]:
    """Accuracy by kind of example.

    Args:
        name: the breakdown's name.
        title: its heading.
        rows: a share for each kind.
        numbers: kinds are numbers, drawn along an axis.
        more: a long list, folded away.
    """
    rendered = [_row(row) for row in rows]
    return {"name": name, "title": title, "rows": rendered, "numbers": numbers, "more": more}


def finite(value: float | None) -> float | None:
    """JSON has no NaN: an interval has one where no resample has such an example."""
    return None if value is None or not math.isfinite(value) else value


def _split(name: str, split: ReportedSplit) -> dict[str, Any]:
    rows = split.rows
    if rows is None:
        rows = [
            MetricRow(split.declared[key], value)
            for key, value in split.metrics.items()
            if key in split.declared and split.declared[key].unit == "share"
        ]
    told = {row.metric.name for row in rows}
    extra = {key: value for key, value in split.extra.items() if key != "curves"}
    return {
        "noun": "example",
        "baselines": {},
        "breakdowns": [],
        "filters": {},
        **extra,
        "name": name,
        "headline": split.headline,
        "note": split.note,
        "metrics": [_row(row) for row in rows],
        "others": [
            [key, shown(split.declared.get(key), value)]
            for key, value in split.metrics.items()
            if key not in told
        ],
        "examples": [dict(example) for example in split.examples],
    }


def _row(row: MetricRow) -> dict[str, Any]:
    metric = {
        "name": row.metric.name,
        "unit": row.metric.unit,
        "lower": row.metric.better == "min",
    }
    if row.value is None:
        return {**metric, "reason": row.reason}
    return {
        **metric,
        "value": finite(row.value),
        "count": row.count,
        "low": finite(row.low),
        "high": finite(row.high),
        "baselines": {name: finite(value) for name, value in row.baselines.items()},
    }


def _images(splits: Iterable[ReportedSplit]) -> dict[str, str]:
    wanted: dict[str, ImageFolder] = {}
    for split in splits:
        if split.images is not None:
            shown_there = [example["image"] for example in split.examples if "image" in example]
            wanted |= dict.fromkeys(shown_there, split.images)
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
