"""The benchmarks' plots, in the colours of the drawings in ``docs/``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lavis_ext.files import written_aside

PAPER, FRAME, TEXT, FAINT = "#fcfbf8", "#d8d4ca", "#1f2427", "#5b6469"
TRAINED, TRAINED_TEXT, FROZEN = "#c9691b", "#8f4208", "#4a7ba6"
INCH = 100
"""Pixels."""
LADDER = (
    "straightforward",
    "fused",
    "pairs",
    "live_4",
    "live",
    "stored",
    "bf16",
    "compiled",
)


@contextmanager
def drawn(path: Path, width: int, height: int, title: str) -> Iterator[Figure]:
    """A figure of so many pixels; it is written as SVG, its letters as text."""
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


def draw_speed(figures: Mapping[str, Any], path: Path) -> None:
    """What ``benchmarks.speed`` measured: the ladder, and cost against the sizes of a batch."""
    found = figures["variants"]
    device = figures["device"]
    where = f"{figures['threads']} threads" if device == "cpu" else device
    title = f"Training {figures['model']} on {where}"
    with drawn(path, 1000, 620, title) as figure:
        grid = figure.add_gridspec(
            2, 3, left=0.3, right=0.975, top=0.88, bottom=0.1, hspace=0.55, wspace=0.32,
            height_ratios=(1.5, 1),
        )  # fmt: skip
        figure.text(0.02, 0.945, title, fontsize=14, fontweight="bold")
        _draw_ladder(figure.add_subplot(grid[0, :]), found)
        places = [figure.add_subplot(grid[1, column]) for column in range(3)]
        for place in places[:1]:
            box = place.get_position()
            place.set_position((0.07, box.y0, box.x1 - 0.09, box.height))
        base = found.get("stored")
        for axes, (label, sizes) in zip(places, SWEEPS.items(), strict=True):
            measured = {size: found.get(name, None) for size, name in sizes.items()}
            _draw_sweep(axes, label, {s: f for s, f in measured.items() if f}, base)


SWEEPS: Mapping[str, Mapping[int, str]] = {
    "questions an image": {
        **{count: f"questions_{count}" for count in (1, 2, 4, 8)},
        16: "stored",
        32: "questions_32",
    },
    "images a batch": {1: "stored", 2: "images_2", 4: "images_4"},
    "processes": {1: "stored", 2: "processes_2"},
}


def _draw_ladder(axes: Axes, found: Mapping[str, Any]) -> None:
    rows = [found[name] for name in LADDER if name in found]
    rates = [row["questions_per_second"] for row in rows]
    places = range(len(rows))
    colours = [FROZEN if place == 0 else TRAINED for place in places]
    axes.barh(places, rates, color=colours, height=0.66)
    for place, row in enumerate(rows):
        rate, slowest, fastest = (row[k] for k in ("questions_per_second", "slowest", "fastest"))
        axes.plot((slowest, fastest), (place, place), color=TEXT, linewidth=1.2)
        times = row.get("times_straightforward")
        told = f"  {rate:.2g}" + (f"   {times:.3g} times" if times and place else "")
        axes.text(max(rate, fastest), place, told, va="center")
    axes.set_yticks(list(places), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row["fastest"] for row in rows))
    axes.set_title("questions a second; the line goes from the slowest step to the fastest")
    axes.tick_params(axis="y", length=0)


def _draw_sweep(axes: Axes, label: str, found: Mapping[int, Any], base: Any) -> None:
    axes.set_title("seconds a question" if label == "questions an image" else "")
    axes.set_xlabel(label)
    if not found:
        return
    sizes = list(found)
    costs = [1 / found[size]["questions_per_second"] for size in sizes]
    axes.plot(sizes, costs, color=TRAINED, marker="o", markersize=4)
    for size, cost in zip(sizes, costs, strict=True):
        row = found[size]
        axes.plot((size, size), (1 / row["fastest"], 1 / row["slowest"]), color=TEXT, linewidth=1.2)
        axes.annotate(
            f"{cost:.2g}", (size, cost), (0, 7), textcoords="offset points", ha="left", fontsize=9.5
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.25 * max(1 / row["slowest"] for row in found.values()))
    axes.grid(axis="y")
    axes.margins(x=0.12)


def draw_accuracy(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], title: str, path: Path
) -> None:
    """Accuracy over wall time: for each way, the runs' points (seconds, accuracy from 0 to 1)."""
    with drawn(path, 1000, 420, title) as figure:
        axes = figure.add_axes((0.07, 0.14, 0.9, 0.7))
        figure.text(0.02, 0.93, title, fontsize=14, fontweight="bold")
        for (way, curves), colour in zip(runs.items(), (FROZEN, TRAINED), strict=True):
            for place, points in enumerate(curves):
                seconds, accuracies = zip(*points, strict=True)
                axes.plot(
                    seconds,
                    [100 * accuracy for accuracy in accuracies],
                    color=colour,
                    marker="o",
                    markersize=3.5,
                    linewidth=1.4,
                    label=way if place == 0 else None,
                )
        axes.set_xscale("log")
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("answers right on val, %")
        axes.grid(axis="y")
        axes.legend(frameon=False, loc="lower right")
