"""Draw how questions about an image were answered: heat, points, masks and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lavis_ext.common.errors import printable
from lavis_ext.evaluation.answered import Answered, share_of_maximum
from lavis_ext.evaluation.page import Font, Lettering, Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lengths are pixels. This width fits on a laptop's screen.
WIDTH = 1400
MARGIN = 24
GAP = 16
HEADER = 76
CAPTIONS = 310
TALLEST_PANEL = 420
NARROWEST_PANEL = 180
SHORTEST_ROW = 190
WIDE = 1.8
"""Aspect ratio above which the four panels of a question take two rows."""
QUESTION_LINES = 2
CAPTION_LINES = 3

# Its brightness increases evenly, so that it is readable without color vision.
HEAT_COLORS = "inferno"
HEAT_OPACITY = 0.65
OUTLINE = "#56B4E9"  # sky blue of Okabe and Ito's palette, unlike all heat colors
FAINT = "#555555"

TITLE = Font(13, 24, "bold")
QUESTION = Font(12, 23, "bold")
ANSWER = Font(12, 23)
LABEL = Font(9.5, 21)
CAPTION = Font(9.5, 17)


def answer_figure(image: Image.Image, title: str, answered: Sequence[Answered]) -> "Figure":
    """A row of panels for each question: image, raw heat, points and mask, refined heat, captions.

    Args:
        image: RGB picture of any size and shape.
        title: title of the picture.
        answered: the questions about it.

    Returns:
        A figure of 1400 pixels width and the required height, without matplotlib's global state.
    """
    layout = _Layout.of(image)
    lettering = Lettering()
    wrapped = [
        lettering.wrapped(printable(each.question), QUESTION, WIDTH - 2 * MARGIN, QUESTION_LINES)
        for each in answered
    ]
    heights = [layout.row_height(len(lines)) for lines in wrapped]
    page = Page(WIDTH, HEADER + sum(heights), lettering)
    _draw_header(page, printable(title))
    small = image.copy()
    small.thumbnail((2 * layout.panel_width, 2 * layout.panel_height))
    top = HEADER
    for each, lines, height in zip(answered, wrapped, heights, strict=True):
        _draw_row(page, layout, top, lines, small, each)
        top += height
    return page.figure


@dataclass(frozen=True)
class _Layout:
    """Positions of a row's parts. All panels have the shape of the image."""

    columns: int
    slot_width: int
    panel_width: int
    panel_height: int

    @classmethod
    def of(cls, image: Image.Image) -> "_Layout":
        shape = image.width / image.height
        columns = 2 if shape > WIDE else 4
        room = (WIDTH - 2 * MARGIN - CAPTIONS - columns * GAP) // columns
        width = min(room, TALLEST_PANEL * shape)
        # At least a line's height, for extremely wide images.
        panel = max(1, round(width)), max(8, round(width / shape))
        return cls(columns, max(panel[0], min(room, NARROWEST_PANEL)), *panel)

    @property
    def panels_height(self) -> int:
        """Height of the four panels with their labels."""
        return max(SHORTEST_ROW, 4 // self.columns * (LABEL.pitch + self.panel_height + GAP) - GAP)

    @property
    def captions_left(self) -> int:
        return MARGIN + self.columns * (self.slot_width + GAP)

    def row_height(self, question_lines: int) -> int:
        texts = question_lines * QUESTION.pitch + ANSWER.pitch
        return GAP + texts + GAP // 2 + self.panels_height + GAP

    def slot(self, number: int, top: int) -> tuple[int, int]:
        """Left and top of a panel's label; the panels begin at ``top``."""
        row, column = divmod(number, self.columns)
        left = MARGIN + column * (self.slot_width + GAP)
        return left, top + row * (LABEL.pitch + self.panel_height + GAP)


def _draw_header(page: Page, title: str) -> None:
    middle = MARGIN + 4
    legend = 560
    fitting = page.lettering.wrapped(title, TITLE, legend - MARGIN - 2 * GAP, 1)
    page.write(MARGIN, middle, fitting[0], TITLE)

    sample = page.axes(legend, middle - 10, 20, 20)
    _draw_points(sample, np.array([[0.5, 0.5]]))
    page.write(legend + 26, middle, "point", LABEL)
    sample = page.axes(legend + 84, middle - 10, 28, 20)
    _draw_line(sample, [0, 1], [0.5, 0.5])
    page.write(legend + 120, middle, "outline of the mask", LABEL)

    most, length = "hottest in its map", 300
    page.write(WIDTH - MARGIN, middle, most, LABEL, align="right")
    bar = WIDTH - MARGIN - page.lettering.width(most, LABEL) - 8 - length
    page.axes(bar, middle - 7, length, 14).imshow(
        np.linspace(0, 1, 256)[None], cmap=HEAT_COLORS, aspect="auto", extent=(0, 1, 1, 0)
    )
    page.write(bar - 8, middle, "no heat", LABEL, align="right")
    meaning = "heat: how much a place speaks for the question belonging to this picture"
    page.write(WIDTH - MARGIN, middle + 24, meaning, LABEL, FAINT, align="right")


def _draw_row(
    page: Page,
    layout: _Layout,
    top: int,
    question: Sequence[str],
    image: Image.Image,
    row: Answered,
) -> None:
    _draw_rule(page, top)
    middle = top + GAP + QUESTION.pitch // 2
    for line in question:
        page.write(MARGIN, middle, line, QUESTION)
        middle += QUESTION.pitch
    matching = f"question and picture match: {100 * row.matching:.0f} %"
    page.write(WIDTH - MARGIN, middle, matching, LABEL, FAINT, align="right")
    room = WIDTH - 2 * MARGIN - GAP - page.lettering.width(matching, LABEL)
    answer = page.lettering.wrapped(f"Answer: {row.answer or '(empty)'}", ANSWER, room, 1)
    page.write(MARGIN, middle, answer[0], ANSWER)
    top = middle + ANSWER.pitch // 2 + GAP // 2

    pixels, gray = np.asarray(image), np.asarray(image.convert("L"))
    panels = []
    for number, label in enumerate(row.labels):
        left, label_top = layout.slot(number, top)
        page.write(left, label_top + LABEL.pitch // 2 - 1, label, LABEL, FAINT)
        panel_top = label_top + LABEL.pitch
        panels.append(page.axes(left, panel_top, layout.panel_width, layout.panel_height))
    picture, raw, masked, refined = panels
    _draw_image(picture, pixels)
    _draw_heat(raw, gray, share_of_maximum(row.heat))
    _draw_points(raw, row.points)
    _draw_image(masked, pixels)
    if row.mask.any():
        masked.imshow(
            np.dstack([np.ones((*row.mask.shape, 3)), 0.6 * ~row.mask]),
            aspect="auto",
            extent=(0, 1, 1, 0),
        )
        _draw_outline(masked, row)
    _draw_points(masked, row.points)
    _draw_heat(refined, gray, share_of_maximum(row.refined))
    _draw_outline(refined, row)
    _draw_captions(page, layout.captions_left, top, layout.panels_height, row.captions)


def _draw_rule(page: Page, top: int) -> None:
    axes = page.axes(MARGIN, top, WIDTH - 2 * MARGIN, 1)
    axes.axhline(0.5, color="#BBBBBB", linewidth=1)


def _draw_image(axes: "Axes", pixels: npt.NDArray[np.uint8]) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect="auto", extent=(0, 1, 1, 0))


def _draw_heat(axes: "Axes", gray: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating]) -> None:
    """Draw heat over the image in faint gray, so that all colors mean heat."""
    _draw_image(axes, (gray // 2 + 64).astype(np.uint8))
    axes.imshow(
        heat,
        cmap=HEAT_COLORS,
        vmin=0,
        vmax=1,
        alpha=HEAT_OPACITY,
        interpolation="nearest",  # show the measured cells
        aspect="auto",
        extent=(0, 1, 1, 0),
    )


def _draw_points(axes: "Axes", points: npt.NDArray[np.floating]) -> None:
    axes.plot(
        *points.T, "o", color="white", markersize=8, markeredgecolor="black", markeredgewidth=1.5
    )


def _draw_line(axes: "Axes", x: Any, y: Any) -> None:
    axes.plot(x, y, color="black", linewidth=3.4)
    axes.plot(x, y, color=OUTLINE, linewidth=1.8)


def _draw_outline(axes: "Axes", row: Answered) -> None:
    for line in row.outlines():
        _draw_line(axes, *line.T)


def _draw_captions(page: Page, left: int, top: int, height: int, captions: Sequence[str]) -> None:
    """Draw the captions that fit, and the number of omitted ones."""
    count = len(captions)
    if not count:  # answered without any
        return
    label = f"{count} caption{'s' if count != 1 else ''}"
    page.write(left, top + LABEL.pitch // 2 - 1, label, LABEL, FAINT)
    indent = 14
    room = (height - LABEL.pitch) // CAPTION.pitch
    middle = top + LABEL.pitch + CAPTION.pitch // 2
    for number, caption in enumerate(captions):
        lines = page.lettering.wrapped(
            caption, CAPTION, WIDTH - MARGIN - left - indent, CAPTION_LINES
        )
        last = number == count - 1
        if len(lines) + (not last) > room:  # reserve a line for the number of omitted ones
            page.write(left, middle, f"and {count - number} more", CAPTION, FAINT)
            return
        page.write(left, middle, "•", CAPTION)
        for line in lines:
            page.write(left + indent, middle, line, CAPTION)
            middle += CAPTION.pitch
        room -= len(lines)
