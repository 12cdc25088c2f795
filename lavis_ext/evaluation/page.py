"""A page addressed in pixels, with text fitted to its space."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_ext.common.files import written_aside

if TYPE_CHECKING:
    # Imported on first use, because few programs need matplotlib.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
POINT = DPI / 72
"""Pixels per point, the unit of font sizes."""


@dataclass(frozen=True)
class Font:
    """Size in points, line spacing in pixels, and weight."""

    size: float
    pitch: int
    weight: str = "normal"


class Lettering:
    """Measures text and breaks it into lines."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

        self._renderer = RendererAgg(1, 1, DPI)
        self._properties = FontProperties

    def width(self, text: str, font: Font) -> float:
        """Width of ``text`` in pixels."""
        properties = self._properties(size=font.size, weight=font.weight)
        return self._renderer.get_text_width_height_descent(text, properties, False)[0]

    def wrapped(self, text: str, font: Font, width: float, lines: int) -> list[str]:
        """Break ``text`` into up to ``lines`` lines of ``width`` pixels; longer text ends in …."""
        broken = [""]
        for word in text.split():
            longer = f"{broken[-1]} {word}".strip()
            if self.width(longer, font) <= width:
                broken[-1] = longer
                continue
            if broken[-1]:
                broken.append("")
            for letter in word:  # a word may be longer than a line
                if self.width(broken[-1] + letter, font) > width:
                    broken.append("")
                broken[-1] += letter
            if len(broken) > lines:
                break
        if len(broken) <= lines:
            return broken
        last = broken[lines - 1]
        while last and self.width(f"{last}…", font) > width:
            last = last[:-1].rstrip()
        return [*broken[: lines - 1], f"{last}…"]


class Page:
    """A ``figure`` addressed in pixels from its top left corner, without pyplot's global state."""

    def __init__(self, width: int, height: int, lettering: Lettering) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure: Figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.width = width
        self.height = height
        self.lettering = lettering

    def write(
        self, x: float, y: float, text: str, font: Font, color: str = "black", align: str = "left"
    ) -> None:
        """Write a line of text, vertically centered at about ``y``."""
        baseline = y + 0.36 * font.size * POINT  # half the height of a capital letter
        self.figure.text(
            x / self.width,
            1 - baseline / self.height,
            text,
            size=font.size,
            weight=font.weight,
            color=color,
            ha=align,
            va="baseline",
            parse_math=False,
        )

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Empty axes with coordinates from (0, 0) at the top left to (1, 1)."""
        bottom = self.height - top - height
        axes = self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(1, 0)
        return axes


def write_png(figure: "Figure", path: Path) -> None:
    """Write a page's ``figure`` in its size. Raises OSError if it can't be written."""
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=DPI)
