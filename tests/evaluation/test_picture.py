"""The picture of how questions were answered."""

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_ext.evaluation.answered import Answered
from lavis_ext.evaluation.page import Lettering, write_png
from lavis_ext.evaluation.picture import CAPTION, answer_figure

GRID = 8
SIDE = 64


def made_output(
    questions: int = 1,
    *,
    captions: list[str] | None = None,
    answer: str = "red",
    hot: tuple[int, int] | None = (1, 6),
    points: bool = True,
) -> Any:
    """An output with one hot cell at (row, column) ``hot``, a point on it and a mask around it."""
    cell = SIDE // GRID
    heat = torch.zeros(GRID, GRID)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    point, label = torch.zeros(2, 2), torch.tensor([-1, -1])
    if hot is not None:
        row, column = hot
        heat[row, column] = 3.0
        if points:
            mask[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = True
            point[0] = torch.tensor([(column + 0.5) * cell, (row + 0.5) * cell])
            label[0] = 1
    refined = heat.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return SimpleNamespace(
        answers=[answer] * questions,
        captions=[["a red circle on a table"] if captions is None else captions] * questions,
        repeated=[0] * questions,
        heat=heat.flatten().expand(questions, -1),
        grid=(GRID, GRID),
        points=point.expand(questions, -1, -1),
        labels=label.expand(questions, -1),
        masks=mask.expand(questions, -1, -1),
        refined=refined.expand(questions, -1, -1),
        image_size=(SIDE, SIDE),
        matching=torch.full((questions,), 0.5),
    )


def answered(questions: list[str], **options: Any) -> list[Answered]:
    return Answered.all_of(questions, made_output(len(questions), **options))


def gray(width: int = 320, height: int = 240) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def text_boxes(figure: Any) -> dict[tuple[int, str], Any]:
    renderer = figure.canvas.get_renderer()
    return {
        (number, text.get_text()): text.get_window_extent(renderer)
        for number, text in enumerate(figure.texts)
    }


def apart(one: Any, other: Any) -> bool:
    return one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0


LONG = "a small wooden table with a lamp beside a large window in the kitchen of an old house"
CASES: dict[str, tuple[tuple[int, int], list[str], dict[str, Any]]] = {
    "one question": ((320, 240), ["what color is it?"], {}),
    "six questions": ((320, 240), ["what color is the cup?"] * 6, {"captions": [LONG] * 3}),
    "a hundred captions": ((640, 480), ["what is it?"], {"captions": [LONG, "a cup"] * 50}),
    "no caption": ((640, 480), ["what is it?"], {"captions": []}),
    "wide": ((1500, 300), [LONG] * 2, {"captions": [LONG] * 30}),
    "a line": ((2000, 4), [LONG], {"captions": [LONG] * 30}),
    "tall": ((300, 1500), [LONG] * 2, {"captions": [LONG] * 100}),
    "a line down": ((4, 2000), [LONG], {"captions": [LONG] * 100}),
    "tiny": ((1, 1), ["what?"], {}),
    "no heat": ((300, 900), ["what?"], {"hot": None}),
    "no points": ((300, 900), ["what?"], {"points": False}),
    "long texts": (
        (640, 480),
        [" ".join([LONG] * 9), "W" * 999],
        {"answer": LONG * 9, "captions": [LONG * 9, "W" * 999, "x"]},
    ),
    "odd signs": ((640, 480), ["$x_1$ or $\\frac$ {}%s?"], {"captions": ["costs $5_", "\\"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_texts_do_not_overlap_and_are_on_the_page(case: str) -> None:
    size, questions, options = CASES[case]
    figure = answer_figure(gray(*size), "photo.jpg" * 30, answered(questions, **options))
    figure.canvas.draw()
    boxes = text_boxes(figure)
    page = figure.bbox
    for name, box in boxes.items():
        assert page.x0 <= box.x0 < box.x1 <= page.x1, name
        assert page.y0 <= box.y0 < box.y1 <= page.y1, name
        for axes in figure.axes:
            assert apart(box, axes.get_window_extent()), name
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert apart(first, second), (one, other)


def test_the_drawing_fits_a_laptops_width_and_grows_a_row_per_question(
    tmp_path: Path,
) -> None:
    sizes = []
    for count in (1, 2, 3):
        path = tmp_path / f"{count}.png"
        write_png(answer_figure(gray(), "photo.jpg", answered(["what?"] * count)), path)
        with Image.open(path) as written:
            sizes.append(written.size)
    assert [width for width, _ in sizes] == [1400] * 3
    first, second, third = (height for _, height in sizes)
    assert 200 < second - first == third - second
    assert list(tmp_path.glob(".*")) == []


def panel(figure: Any, label: str) -> np.ndarray:
    """The pixels under a label, float [h, w, 3]."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)
    text = next(text for text in figure.texts if text.get_text() == label)
    x, y = text.get_position()
    below = [
        axes.get_position()
        for axes in figure.axes
        if abs(axes.get_position().x0 - x) < 1e-6 and axes.get_position().y1 < y
    ]
    box = max(below, key=lambda each: each.y1)
    height, width = pixels.shape[:2]
    rows = slice(round((1 - box.y1) * height), round((1 - box.y0) * height))
    return pixels[rows, round(box.x0 * width) : round(box.x1 * width)]


def center_of(shares: np.ndarray) -> tuple[float, float]:
    """(y, x) of the center of the pixels that are True, in shares of the panel."""
    y, x = shares.nonzero()
    return (y.mean() + 0.5) / shares.shape[0], (x.mean() + 0.5) / shares.shape[1]


@pytest.mark.parametrize("size", [(320, 240), (900, 300), (200, 600)])
def test_heat_points_and_mask_are_drawn_at_their_positions(size: tuple[int, int]) -> None:
    figure = answer_figure(gray(*size), "photo.jpg", answered(["what?"], hot=(1, 6)))
    expected = pytest.approx((1.5 / GRID, 6.5 / GRID), abs=0.03)
    yellow = panel(figure, "raw heat")
    assert center_of(yellow[..., 0] - yellow[..., 2] > 30) == expected
    masked = panel(figure, "points and mask")
    assert center_of(masked[..., 2] - masked[..., 0] > 60) == expected, "the blue outline"
    assert center_of(masked.sum(axis=-1) < 60) == expected, "the point's black rim"
    assert masked[-4, 4].mean() == pytest.approx(0.4 * 128 + 0.6 * 255, abs=3), "pale outside"


def test_nothing_is_hot_where_there_is_no_heat() -> None:
    figure = answer_figure(gray(), "photo.jpg", answered(["what?"], hot=None))
    raw = panel(figure, "raw heat: none")
    assert np.ptp(raw, axis=(0, 1)).max() < 3
    shown = panel(figure, "no points, no mask")
    assert np.ptp(shown, axis=(0, 1)).max() < 3
    assert shown.mean() == pytest.approx(128, abs=3), "the picture as it is"


def test_a_map_without_points_is_drawn_without_a_mask() -> None:
    figure = answer_figure(gray(), "photo.jpg", answered(["what?"], points=False))
    assert np.ptp(panel(figure, "no points, no mask")) < 3
    assert np.ptp(panel(figure, "refined heat: as raw")) > 60


def test_all_captions_that_fit_are_written_and_the_others_counted() -> None:
    few = [f"caption {number}" for number in range(4)]
    texts = [text.get_text() for text in _figure(few).texts]
    assert "4 captions" in texts
    assert [text for text in texts if text in few] == few
    assert not any(text.endswith(" more") for text in texts)
    many = [f"caption {number}" for number in range(100)]
    texts = [text.get_text() for text in _figure(many).texts]
    shown = [text for text in texts if text in many]
    assert shown == many[: len(shown)]
    assert len(shown) > 5
    assert f"and {100 - len(shown)} more" in texts


def _figure(captions: list[str]) -> Any:
    return answer_figure(gray(), "photo.jpg", answered(["what?"], captions=captions))


def test_wrapped_lines_have_all_words_or_end_in_an_ellipsis() -> None:
    lettering = Lettering()
    whole = lettering.wrapped(LONG, CAPTION, 250, 9)
    assert " ".join(whole) == LONG
    assert 1 < len(whole) < 9
    assert all(lettering.width(line, CAPTION) <= 250 for line in whole)
    cut = lettering.wrapped(LONG, CAPTION, 250, 2)
    assert cut[0] == whole[0]
    assert cut[1].endswith("…")
    assert LONG.startswith(" ".join(cut).removesuffix("…"))
    assert lettering.width(cut[1], CAPTION) <= 250
    assert "".join(lettering.wrapped("x" * 90, CAPTION, 250, 9)) == "x" * 90
    assert lettering.wrapped("", CAPTION, 250, 2) == [""]


def test_the_package_is_imported_without_matplotlib() -> None:
    source = (
        "import sys, lavis_ext, lavis_ext.evaluation.picture; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
