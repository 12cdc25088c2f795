"""The sweep's page: its table, the runs' curves over each other, and links to their reports."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lavis_ext.common.files import written_aside
from lavis_ext.common.metrics import LOSS
from lavis_ext.common.version import __version__
from lavis_ext.evaluation.report.curves import TRAINING, read_curves
from lavis_ext.evaluation.report.page import assembled, part
from lavis_ext.evaluation.table import shown, shown_difference
from lavis_ext.runners.reporting import REPORT
from lavis_ext.runners.run_folder import LINES
from lavis_ext.sweep.differences import Difference
from lavis_ext.sweep.folder import Status, SweepFolder
from lavis_ext.sweep.grid import SEED, short_keys
from lavis_ext.sweep.results import Choice, Results, RunResult
from lavis_ext.sweep.tables import interval, label, notes, shown_value

OWN = files("lavis_ext.sweep")
Points = list[list[float]]


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Write ``page_content`` as one HTML file. Raises OSError if it can't be written."""
    style = part("report.css") + _own("sweep.css")
    text = assembled(content, _own("sweep.html"), style=style, program=_own("sweep.js"))
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def page_content(results: Results, folder: SweepFolder) -> dict[str, Any]:
    """Content of the page as JSON-serializable containers."""
    metric = results.metric
    facts = {
        "config": results.config,
        "metric": f"{metric.name}, {results.split}" if results.split else "",
        "better": {"max": "higher", "min": "lower"}.get(metric.better or "", ""),
        "lavis_ext": __version__,
    }
    return {
        "title": results.title,
        "facts": [[name, text] for name, text in facts.items() if text],
        "notes": notes(results),
        "metric": {"name": metric.name, "unit": metric.unit, "better": metric.better},
        "split": results.split,
        "search": results.is_search,
        "keys": list(short_keys(results.keys).values()),
        "choices": [_choice(results, each) for each in results.choices],
        "runs": [_run(results, folder, each) for each in results.runs],
        "charts": _charts(results, folder),
    }


def mean_curve(curves: Sequence[Points]) -> Points:
    """Mean over several curves at the steps that all have."""
    by_step = [{point[0]: point[1] for point in curve} for curve in curves]
    shared = [step for step in by_step[0] if all(step in each for each in by_step)]
    return [[step, sum(each[step] for each in by_step) / len(by_step)] for step in shared]


def _choice(results: Results, choice: Choice) -> dict[str, Any]:
    spread = choice.spread
    return {
        "label": label(results, choice),
        "values": [shown_value(results, choice.values[key]) for key in results.keys],
        "mean": choice.mean,
        "shown": shown(results.metric, choice.mean),
        "spread": "" if spread is None else shown_difference(results.metric, spread)[1:],
        "runs": f"{len(choice.reached)} of {len(choice.runs)}",
        "reached": [
            {"seed": run.run.values.get(SEED, ""), "value": run.value}
            for run in choice.runs
            if run.value is not None
        ],
        "difference": _difference(results, choice.difference),
        "blind": "" if choice.blind is None else shown(results.metric, choice.blind),
        "aboveBlind": _difference(results, choice.above_blind),
    }


def _difference(results: Results, difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "value": difference.value,
        "low": difference.low,
        "high": difference.high,
        "over": difference.over,
        "shown": shown_difference(results.metric, difference.value),
        "interval": interval(results, difference),
    }


def _run(results: Results, folder: SweepFolder, result: RunResult) -> dict[str, Any]:
    report = folder.runs / result.run.name / REPORT
    link = quote(str(report.relative_to(folder.path))) if report.is_file() else ""
    return {
        "name": result.run.name,
        "status": str(result.status),
        "failed": result.status is Status.FAILED,
        "error": result.error,
        "shown": "" if result.value is None else shown(results.metric, result.value),
        "report": link,
    }


def _charts(results: Results, folder: SweepFolder) -> list[dict[str, Any]]:
    """Curves of the metric and the loss, on the split and in training, by choice and run."""
    curves = {
        run.run.name: {
            (chart["name"], series): (chart["unit"], points)
            for chart in read_curves(folder.runs / run.run.name / LINES, metric=results.metric.name)
            for series, points in chart["series"].items()
        }
        for run in results.runs
    }
    validated = results.split or next(
        (series for of in curves.values() for _, series in of if series != TRAINING), ""
    )
    names = dict.fromkeys([results.metric.name, LOSS])
    wanted = [(name, series) for series in (validated, TRAINING) for name in names]
    charts = []
    for key in wanted:
        lines, means, unit = [], [], ""
        for place, choice in enumerate(results.choices):
            own = []
            for run in choice.runs:
                if key in curves[run.run.name]:
                    unit, points = curves[run.run.name][key]
                    own.append(points)
                    lines.append({"choice": place, "run": run.run.name, "points": points})
            if len(own) > 1:
                means.append({"choice": place, "points": mean_curve(own)})
        if lines:
            name, series = key
            charts.append(
                {"name": name, "series": series, "unit": unit, "lines": lines, "means": means}
            )
    return charts


def _own(name: str) -> str:
    return OWN.joinpath(name).read_text(encoding="utf-8")
