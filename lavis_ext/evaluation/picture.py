"""One picture of how questions about an image were answered: heat, points, masks and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lavis_ext.evaluation.page import Font, Lettering, Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lavis_ext.models.pnp_vqa.answering import PipelineOutput

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
"""Width over height above which the four panels of a question stand in two rows."""
QUESTION_LINES = 2
CAPTION_LINES = 3

# Its brightness rises evenly, so that it is read without telling colours apart.
HEAT_COLOURS = "inferno"
HEAT_OPACITY = 0.65
OUTLINE = "#56B4E9"  # the sky blue of Okabe and Ito's palette, which no colour of the heat is
FAINT = "#555555"

TITLE = Font(13, 24, "bold")
QUESTION = Font(12, 23, "bold")
ANSWER = Font(12, 23)
LABEL = Font(9.5, 21)
CAPTION = Font(9.5, 17)


def answer_figure(
    image: Image.Image, title: str, questions: Sequence[str], output: "PipelineOutput"
) -> "Figure":
    """A row of panels for each question: image, raw heat, points and mask, refined heat, captions.

    Args:
        image: the picture that was asked about, RGB, of any size and shape.
        title: what to call it.
        questions: the questions that ``output`` answers, in its order.
        output: of ``PnpVqaFusion.answer``.

    Returns:
        A figure 1400 pixels wide, as high as it takes, drawn without matplotlib's global state.
    """
    layout = _Layout.of(image)
    lettering = Lettering()
    wrapped = [
        lettering.wrapped(question, QUESTION, WIDTH - 2 * MARGIN, QUESTION_LINES)
        for question in questions
    ]
    heights = [layout.row_height(len(lines)) for lines in wrapped]
    page = Page(WIDTH, HEADER + sum(heights), lettering)
    _draw_header(page, title)
    small = image.copy()
    small.thumbnail((2 * layout.panel_width, 2 * layout.panel_height))
    top = HEADER
    for index, (lines, height) in enumerate(zip(wrapped, heights, strict=True)):
        _draw_row(page, layout, top, lines, small, _Row.of(output, index))
        top += height
    return page.figure


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a row stand. All panels have the shape of the image."""

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
        # A line's height at least, for an image that is a line itself.
        panel = max(1, round(width)), max(8, round(width / shape))
        return cls(columns, max(panel[0], min(room, NARROWEST_PANEL)), *panel)

    @property
    def panels_height(self) -> int:
        """Of all four, with the labels above them."""
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


@dataclass(frozen=True)
class _Row:
    """What a question's row shows, as arrays; points are (x, y) in shares of the image's sides."""

    answer: str
    captions: list[str]
    matching: float
    heat: npt.NDArray[np.floating]
    refined: npt.NDArray[np.floating]
    mask: npt.NDArray[np.bool_]
    points: npt.NDArray[np.floating]

    @classmethod
    def of(cls, output: "PipelineOutput", index: int) -> "_Row":
        height, width = output.image_size
        points = output.points[index][output.labels[index] == 1]
        return cls(
            answer=output.answers[index],
            captions=output.captions[index],
            matching=float(output.matching[index]),
            heat=_share_of_maximum(output.heat[index].reshape(output.grid)),
            refined=_share_of_maximum(output.refined[index]),
            mask=output.masks[index].cpu().numpy(),
            points=points.float().cpu().numpy() / (width, height),
        )


def _share_of_maximum(heat: Any) -> npt.NDArray[np.floating]:
    values = heat.detach().float().cpu().numpy()
    hottest = values.max()
    return values / hottest if hottest > 0 else np.zeros_like(values)


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
        np.linspace(0, 1, 256)[None], cmap=HEAT_COLOURS, aspect="auto", extent=(0, 1, 1, 0)
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
    row: _Row,
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

    hot, pointed = bool(row.heat.any()), len(row.points) > 0
    pixels, gray = np.asarray(image), np.asarray(image.convert("L"))
    labels = (
        "picture",
        "raw heat" if hot else "raw heat: none",
        "points and mask" if pointed else "no points, no mask",
        "refined heat" if pointed else "refined heat: as raw",
    )
    panels = []
    for number, label in enumerate(labels):
        left, label_top = layout.slot(number, top)
        page.write(left, label_top + LABEL.pitch // 2 - 1, label, LABEL, FAINT)
        panel_top = label_top + LABEL.pitch
        panels.append(page.axes(left, panel_top, layout.panel_width, layout.panel_height))
    picture, raw, masked, refined = panels
    _draw_image(picture, pixels)
    _draw_heat(raw, gray, row.heat)
    _draw_points(raw, row.points)
    _draw_image(masked, pixels)
    if pointed:
        masked.imshow(
            np.dstack([np.ones((*row.mask.shape, 3)), 0.6 * ~row.mask]),
            aspect="auto",
            extent=(0, 1, 1, 0),
        )
        _draw_outline(masked, row.mask)
        _draw_points(masked, row.points)
    _draw_heat(refined, gray, row.refined)
    _draw_outline(refined, row.mask)
    _draw_captions(page, layout.captions_left, top, layout.panels_height, row.captions)


def _draw_rule(page: Page, top: int) -> None:
    axes = page.axes(MARGIN, top, WIDTH - 2 * MARGIN, 1)
    axes.axhline(0.5, color="#BBBBBB", linewidth=1)


def _draw_image(axes: "Axes", pixels: npt.NDArray[np.uint8]) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect="auto", extent=(0, 1, 1, 0))


def _draw_heat(axes: "Axes", gray: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating]) -> None:
    """The heat over the image in faint gray, so that every colour, dark or bright, means heat."""
    _draw_image(axes, (gray // 2 + 64).astype(np.uint8))
    axes.imshow(
        heat,
        cmap=HEAT_COLOURS,
        vmin=0,
        vmax=1,
        alpha=HEAT_OPACITY,
        interpolation="nearest",  # the cells are what was measured
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


def _draw_outline(axes: "Axes", mask: npt.NDArray[np.bool_]) -> None:
    if not mask.any():
        return
    # A frame of nothing closes the outlines of masks that reach the image's edge.
    framed = np.pad(mask, 1)
    y, x = ((np.arange(-1, side + 1) + 0.5) / side for side in mask.shape)
    for colour, width in (("black", 3.4), (OUTLINE, 1.8)):
        axes.contour(x.clip(0, 1), y.clip(0, 1), framed, [0.5], colors=colour, linewidths=width)


def _draw_captions(page: Page, left: int, top: int, height: int, captions: Sequence[str]) -> None:
    """As many captions as there is room for, and how many more there are."""
    count = len(captions)
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
        if len(lines) + (not last) > room:  # a line is kept for how many are left out
            page.write(left, middle, f"and {count - number} more", CAPTION, FAINT)
            return
        page.write(left, middle, "•", CAPTION)
        for line in lines:
            page.write(left + indent, middle, line, CAPTION)
            middle += CAPTION.pitch
        room -= len(lines)
