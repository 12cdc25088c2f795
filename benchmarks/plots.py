"""Plots of the benchmarks, in the colors of the drawings in ``docs/``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from lavis_ext.common.files import written_aside
from lavis_ext.sweep.differences import Difference

PAPER, FRAME, TEXT, FAINT = "#fcfbf8", "#d8d4ca", "#1f2427", "#5b6469"
TRAINED, TRAINED_TEXT, FROZEN = "#c9691b", "#8f4208", "#4a7ba6"
INCH = 100
"""Pixels."""


@contextmanager
def drawn(path: Path, width: int, height: int, title: str) -> Iterator[Figure]:
    """Context manager with a figure in pixels, written as SVG with text kept as text."""
    style: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10.5,
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.edgecolor": FAINT,
        "axes.facecolor": PAPER,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": TEXT,
        "ytick.labelcolor": TEXT,
        "grid.color": FRAME,
    }
    with mpl.rc_context(style):
        figure = Figure((width / INCH, height / INCH), dpi=INCH, facecolor=PAPER)
        yield figure
        with written_aside(path) as aside:
            figure.savefig(aside, format="svg", metadata={"Date": None, "Title": title})


def draw_speed(metrics: Mapping[str, Any], path: Path) -> None:
    """Plot the results of ``benchmarks.speed``: the ladder, and cost by batch size."""
    found = metrics["variants"]
    threads = f"{metrics['threads']} core{'s' if metrics['threads'] > 1 else ''} of a CPU"
    where = threads if metrics["device"] == "cpu" else metrics["device"]
    title = f"Training {metrics['model']} on {where}"
    with drawn(path, 1000, 640, title) as figure:
        figure.text(0.02, 0.945, title, fontsize=14, fontweight="bold")
        _draw_ladder(figure.add_axes((0.37, 0.47, 0.6, 0.4)), found, metrics["ladder"])
        swept = {field: _swept(found, field) for field in SWEPT}
        slowest = [row["slowest"] for rows in swept.values() for row in rows.values()]
        highest = 1 / min(slowest, default=1.0)
        for (left, width), (field, rows) in zip(
            ((0.065, 0.36), (0.5, 0.21), (0.785, 0.19)), swept.items(), strict=True
        ):
            _draw_sweep(figure.add_axes((left, 0.1, width, 0.22)), SWEPT[field], rows, highest)
        figure.text(
            0.065, 0.36, "seconds a question, features stored, float32", fontweight="bold",
            fontsize=11.5,
        )  # fmt: skip


SWEPT = {
    "questions": "questions an image",
    "images": "images a batch",
    "processes": "processes",
}
"""Sizes of a variant, with their labels in the plot."""


def _swept(found: Mapping[str, Any], field: str) -> dict[int, Any]:
    """Variants that differ from ``stored`` only in ``field``, by its value."""

    def others(row: Any) -> dict[str, Any]:
        return {k: v for k, v in row["variant"].items() if k not in (field, "name", "label")}

    base = found.get("stored")
    rows = [row for row in found.values() if base and others(row) == others(base)]
    return {row["variant"][field]: row for row in sorted(rows, key=lambda r: r["variant"][field])}


def _draw_ladder(axes: Axes, found: Mapping[str, Any], names: Sequence[str]) -> None:
    rows = [found[name] for name in names]
    places = range(len(rows))
    colors = [FROZEN if row["variant"]["ways"] else TRAINED for row in rows]
    axes.barh(places, [row["examples_per_second"] for row in rows], color=colors, height=0.62)
    for place, row in enumerate(rows):
        axes.plot((row["slowest"], row["fastest"]), (place, place), color=TEXT, linewidth=1.2)
        label = _shown(row["examples_per_second"])
        if "times_straightforward" in row and place:
            label += f" ({_shown(row['times_straightforward'][1])} times)"
        axes.annotate(
            label, (row["fastest"], place), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(list(places), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(row["fastest"] for row in rows))
    axes.set_title("questions a second; lines go from the slowest step to the fastest", x=-0.58)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _draw_sweep(axes: Axes, label: str, found: Mapping[int, Any], highest: float) -> None:
    sizes = list(found)
    costs = [1 / row["examples_per_second"] for row in found.values()]
    axes.plot(sizes, costs, color=TRAINED, marker="o", markersize=4)
    for size, cost, row in zip(sizes, costs, found.values(), strict=True):
        axes.plot((size, size), (1 / row["fastest"], 1 / row["slowest"]), color=TEXT, linewidth=1.2)
        axes.annotate(_shown(cost), (size, cost), (3, 7), textcoords="offset points", fontsize=9.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(label)
    # One scale for all three, for comparison.
    axes.set_ylim(0, 1.25 * highest)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.15)


def _shown(number: float) -> str:
    """Format with two significant digits, or as an integer from 10 on."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def draw_accuracy(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], title: str, path: Path
) -> None:
    """Accuracy over wall time: for each way, the runs' points (seconds, accuracy from 0 to 1)."""
    with drawn(path, 1000, 420, title) as figure:
        axes = figure.add_axes((0.07, 0.14, 0.9, 0.7))
        figure.text(0.02, 0.93, title, fontsize=14, fontweight="bold")
        for (way, curves), color in zip(runs.items(), (FROZEN, TRAINED), strict=True):
            for place, points in enumerate(curves):
                seconds, accuracies = zip(*points, strict=True)
                axes.plot(
                    seconds,
                    [100 * accuracy for accuracy in accuracies],
                    color=color,
                    marker="o",
                    markersize=3.5,
                    linewidth=1.4,
                    label=way if place == 0 else None,
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("answers right on val, %")
        axes.grid(axis="y")
        axes.legend(frameon=False, loc="lower right")


def draw_differences(studies: Mapping[str, Mapping[str, Difference]], path: Path) -> None:
    """A panel a study: each fusion's difference, in points, and its 95 % interval."""
    names = list(dict.fromkeys(name for found in studies.values() for name in found))
    title = "Difference from the first stream alone, in points, with 95 % intervals"
    with drawn(path, 300 + 300 * len(studies), 130 + 26 * len(names), title) as figure:
        figure.text(0.02, 0.93, title, fontsize=14, fontweight="bold")
        left = 210 / (300 + 300 * len(studies))
        width = (0.98 - left) / max(1, len(studies))
        for place, (study, found) in enumerate(studies.items()):
            axes = figure.add_axes((left + place * width, 0.16, 0.86 * width, 0.62))
            axes.axvline(0, color=FAINT, linewidth=1)
            for row, name in enumerate(names):
                if (difference := found.get(name)) is None:
                    continue
                low, high = difference.low, difference.high
                sure = low is not None and high is not None and low * high > 0
                color = TRAINED if sure and difference.value > 0 else FAINT
                if low is not None and high is not None:
                    axes.plot((100 * low, 100 * high), (row, row), color=color, linewidth=1.6)
                axes.plot(100 * difference.value, row, "o", color=color, markersize=5)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(range(len(names)), names if place == 0 else [])
            axes.tick_params(axis="y", length=0)
            axes.set_title(study)
            axes.grid(axis="x")
            axes.set_axisbelow(True)
