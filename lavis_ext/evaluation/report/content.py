"""Convert reported splits to the page's content as JSON-serializable containers."""

import math
from collections import Counter
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
    """A row of the metrics table.

    Attributes:
        metric: name, unit and direction.
        value: None for a metric that wasn't computed.
        count: number of examples.
        low, high: its 95 % interval.
        baselines: the metric's values for baselines, by name.
        reason: reason why it wasn't computed.
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
    """A split's part of the report.

    An example is a mapping with ``id`` and, if known, ``image`` (its id), ``question`` (the
    heading), ``prediction``, ``answer`` (the correct one), the keys of ``extra["filters"]``, heat
    maps ``raw`` and ``refined`` (``width``, ``height`` and ``cells``, base64 of row-major bytes),
    ``matching`` (0 to 1), ``captions`` and ``captionsFound``.

    Attributes:
        metrics: values by name.
        declared: units and directions of the metrics.
        rows: metrics table; by default a row per metric that is a share.
        note: text below the table.
        headline: sentence at the top.
        examples: shown examples.
        images: folder of their images; None for a page without images.
        extra: additional parts, all optional: ``noun`` for an example (``question``); ``count`` of
            evaluated examples; ``baselines``, labels by name, of which the first is drawn in the
            plots; ``breakdowns``, a list of :func:`breakdown`; ``confusions``; ``filters``, labels
            by key of the examples; ``heatNote``, the meaning of the heat maps; ``curves``, by
            metric the labels of other logged metrics that are drawn in its chart.
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
    """Content of the page.

    Args:
        title: name of the evaluated run or predictions.
        facts: additional facts by label.
        splits: results by split.
        log: ``log.jsonl`` of the training run, if there is one.
        metric: metric that selects the best weights; its curve follows the loss.
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
        "heatColors": _heat_colors() if heated else [],
    }


def breakdown(
    name: str, title: str, rows: Iterable[MetricRow], *, numbers: bool = False, more: bool = False
) -> dict[str, Any]:
    """Accuracy by kind of example, as page content.

    Args:
        name: name of the breakdown.
        title: heading.
        rows: a share per kind.
        numbers: whether kinds are numbers, drawn along an axis.
        more: whether it is a long list, collapsed by default.
    """
    rendered = [_row(row) for row in rows]
    return {"name": name, "title": title, "rows": rendered, "numbers": numbers, "more": more}


def finite(value: float | None) -> float | None:
    """Replace NaN by None for JSON; an interval is NaN if no resample has such an example."""
    return None if value is None or not math.isfinite(value) else value


def _split(name: str, split: ReportedSplit) -> dict[str, Any]:
    rows = split.rows
    if rows is None:
        rows = [
            MetricRow(split.declared[key], value)
            for key, value in split.metrics.items()
            if key in split.declared and split.declared[key].unit == "share"
        ]
    in_rows = {row.metric.name for row in rows}
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
            if key not in in_rows
        ],
        "examples": [dict(example) for example in _pictures_first(split.examples)],
    }


def _row(row: MetricRow) -> dict[str, Any]:
    metric = {
        "name": row.metric.name,
        "unit": row.metric.unit,
        "lower": row.metric.better == "min",
    }
    if row.value is None:
        return {**metric, "reason": row.reason}
    low, high = finite(row.low), finite(row.high)
    return {
        **metric,
        "value": finite(row.value),
        "count": row.count,
        "low": low,
        "high": high,
        "baselines": {name: finite(value) for name, value in row.baselines.items()},
        # As in headlines and tables: JavaScript rounds halves otherwise.
        "shown": {
            "value": shown(row.metric, row.value),
            "interval": f"{shown(row.metric, low)} to {shown(row.metric, high)}"
            if low is not None
            else "",
            "baselines": {name: shown(row.metric, each) for name, each in row.baselines.items()},
        },
    }


def _pictures_first(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first example of each picture, then the second of each, and so on."""
    earlier: Counter[Any] = Counter()
    turns = []
    for example in examples:
        picture = example.get("image", example["id"])
        turns.append(earlier[picture])
        earlier[picture] += 1
    order = sorted(range(len(examples)), key=turns.__getitem__)
    return [examples[place] for place in order]


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


def _heat_colors() -> list[list[int]]:
    """Colors from no heat to the maximum, as in the pictures of single answers."""
    # Imported here because matplotlib takes a second.
    from matplotlib import colormaps

    from lavis_ext.evaluation.picture import HEAT_COLORS

    colors = colormaps[HEAT_COLORS](np.linspace(0, 1, 256), bytes=True)
    listed: list[list[int]] = np.asarray(colors)[:, :3].tolist()
    return listed
