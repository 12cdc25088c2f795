"""Drawing a scene: background, textured and outlined shapes, and the mask of visible objects."""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from lavis_ext.datasets.mini_gqa.backgrounds import paint_background
from lavis_ext.datasets.mini_gqa.contours import contours
from lavis_ext.datasets.mini_gqa.scenes import REFERENCE_SIDE, Box, Scene, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import COLORS

SUPERSAMPLING = 2
# A dark line inside a pale one separates every color from every background.
PALE = np.array([250, 248, 240], np.float32)
LUMINANCE = np.array([0.30, 0.59, 0.11], np.float32)
DARK = np.array([16, 16, 18], np.float32)
PALE_HALF_WIDTH, DARK_HALF_WIDTH = 1.6, 0.7

Array = np.ndarray


def render(scene: Scene, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw ``scene``.

    Returns:
        The image, uint8 [side, side, 3], and the mask, uint8 [side, side]: 1 + the index of the
        object seen at a pixel, 0 for the background.
    """
    canvas = paint_background(scene.place, scene.weather, scene.side, rng)
    mask = np.zeros((scene.side, scene.side), np.uint8)
    for index, item in enumerate(scene.objects):
        color, alpha, body = _sprite(item, scene.side, scene.world.outlines)
        half = len(alpha) // 2
        rows, columns = (slice(c - half, c + half) for c in (item.y, item.x))
        canvas[rows, columns] = canvas[rows, columns] * (1 - alpha[..., None]) + color
        region = mask[rows, columns]
        region[alpha >= 0.5] = 0
        region[body >= 0.5] = index + 1
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), mask


def visible_boxes(mask: Array, count: int) -> list[Box]:
    """Bounding boxes (x, y, w, h) in pixels of the objects 1..``count`` of ``mask``."""
    boxes = []
    for index in range(1, count + 1):
        seen = mask == index
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        boxes.append((x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1))
    return boxes


def _sprite(
    item: SceneObject, side: int, outlines: Mapping[str, float] | None
) -> tuple[Array, Array, Array]:
    """Color times alpha [n, n, 3], alpha [n, n] and the object's coverage of pixels [n, n].

    A pale line around an object and the inside of its fine holes are not the object.
    """
    unit = side / REFERENCE_SIDE
    half = min(math.ceil(1.12 * item.radius + 2 * unit), item.x, item.y)
    half = min(half, side - item.x, side - item.y)
    n = 2 * half * SUPERSAMPLING
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * item.radius * SUPERSAMPLING
    outline, *holes = (contour @ turn + n / 2 for contour in contours(item, unit))

    body, pale, dark = (Image.new("1", (n, n)) for _ in range(3))
    ImageDraw.Draw(body).polygon(_points(outline), fill=1)
    for hole in holes:
        ImageDraw.Draw(body).polygon(_points(hole), fill=0)
    if outlines is None:
        for contour in (outline, *holes):
            _line(pale, contour, PALE_HALF_WIDTH * unit)
            _line(dark, contour, DARK_HALF_WIDTH * unit)
    else:
        _line(dark, outline, outlines[item.attributes["outline"]] * unit)
        for hole in holes:
            ImageDraw.Draw(dark).polygon(_points(hole), fill=1)

    in_body, in_pale, in_dark = (np.asarray(layer) for layer in (body, pale, dark))
    seen = covered = in_body | in_dark
    if outlines is not None:
        # The line is drawn on both sides of the edge; its outer half would fill gaps of teeth.
        outside = Image.new("1", (n, n))
        ImageDraw.Draw(outside).polygon(_points(outline), fill=1)
        seen, covered = np.asarray(outside), in_body
    color = np.where(in_body[..., None], _texture(item, n, unit), PALE)
    color = np.where(in_dark[..., None], DARK, color)
    alpha = (seen | in_pale).astype(np.float32)
    return _shrink(color * alpha[..., None]), _shrink(alpha), _shrink(covered.astype(np.float32))


def _line(layer: Image.Image, contour: Array, half_width: float) -> None:
    """Draw a closed line of ``2 * half_width`` pixels of the image."""
    closed = _points(contour)
    closed += closed[:2]
    width = round(2 * half_width * SUPERSAMPLING)
    ImageDraw.Draw(layer).line(closed, fill=1, width=width, joint="curve")


def _texture(item: SceneObject, n: int, unit: float) -> Array:
    """The object's color and rotated pattern, float32 [n, n, 3], supersampled."""
    color, pattern = item.attributes["color"], item.attributes.get("pattern", "plain")
    base = np.array(COLORS[color], np.float32)
    if pattern == "plain":
        return np.broadcast_to(base, (n, n, 3))
    # The pattern's second color is a darker or paler shade of the first, so that the object's color
    # stays obvious; white and black change less, or both would look gray.
    if color in ("white", "black"):
        second = base * 0.58 if color == "white" else base * 0.52 + 255 * 0.48
    elif base @ LUMINANCE > 125:
        second = base * 0.35
    else:
        second = base * 0.3 + 255 * 0.7
    axis = (np.arange(n, dtype=np.float32) - n / 2) / SUPERSAMPLING
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    u = axis[None, :] * cos + axis[:, None] * sin
    v = axis[:, None] * cos - axis[None, :] * sin
    period = 0.26 * item.radius + 3.4 * unit
    if pattern == "striped":
        marked = (u + v) / (1.2 * period) % 1 < 0.42
    elif pattern == "dotted":
        marked = np.hypot(u / period % 1 - 0.5, v / period % 1 - 0.5) < 0.31
    else:
        cell = 0.68 * period
        marked = (np.floor(u / cell) + np.floor(v / cell)) % 2 < 1
    return np.where(marked[..., None], second, base)


def _points(contour: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in contour]


def _shrink(layer: Array) -> Array:
    """Average ``SUPERSAMPLING`` x ``SUPERSAMPLING`` blocks (slices add faster than ``mean``)."""
    step = SUPERSAMPLING
    total = sum(layer[row::step, column::step] for row in range(step) for column in range(step))
    return np.asarray(total) / np.float32(step * step)
