"""Drawing a scene: background, textured and outlined shapes, and the mask of visible objects."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from lavis_ext.datasets.mini_gqa.backgrounds import paint_background
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
        color, alpha, body = _sprite(item, scene.side)
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


def _sprite(item: SceneObject, side: int) -> tuple[Array, Array, Array]:
    """Color times alpha [n, n, 3], alpha [n, n] and coverage without the pale line [n, n]."""
    unit = side / REFERENCE_SIDE
    half = min(math.ceil(1.12 * item.radius + 2 * unit), item.x, item.y)
    half = min(half, side - item.x, side - item.y)
    n = 2 * half * SUPERSAMPLING
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * item.radius * SUPERSAMPLING
    outline, *holes = (contour @ turn + n / 2 for contour in _contours(item.name))

    body, pale, dark = (Image.new("1", (n, n)) for _ in range(3))
    ImageDraw.Draw(body).polygon(_points(outline), fill=1)
    for hole in holes:
        ImageDraw.Draw(body).polygon(_points(hole), fill=0)
    for contour in (outline, *holes):
        closed = _points(contour)
        closed += closed[:2]
        for line, half_width in ((pale, PALE_HALF_WIDTH), (dark, DARK_HALF_WIDTH)):
            width = round(2 * half_width * unit * SUPERSAMPLING)
            ImageDraw.Draw(line).line(closed, fill=1, width=width, joint="curve")

    in_body, in_pale, in_dark = (np.asarray(layer) for layer in (body, pale, dark))
    covered = in_body | in_dark
    color = np.where(in_body[..., None], _texture(item, n, unit), PALE)
    color = np.where(in_dark[..., None], DARK, color)
    alpha = (covered | in_pale).astype(np.float32)
    return _shrink(color * alpha[..., None]), _shrink(alpha), _shrink(covered.astype(np.float32))


def _texture(item: SceneObject, n: int, unit: float) -> Array:
    """The object's color and rotated pattern, float32 [n, n, 3], supersampled."""
    base = np.array(COLORS[item.color], np.float32)
    if item.pattern == "plain":
        return np.broadcast_to(base, (n, n, 3))
    # The pattern's second color is a darker or paler shade of the first, so that the object's color
    # stays obvious; white and black change less, or both would look gray.
    if item.color in ("white", "black"):
        second = base * 0.58 if item.color == "white" else base * 0.52 + 255 * 0.48
    elif base @ LUMINANCE > 125:
        second = base * 0.35
    else:
        second = base * 0.3 + 255 * 0.7
    axis = (np.arange(n, dtype=np.float32) - n / 2) / SUPERSAMPLING
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    u = axis[None, :] * cos + axis[:, None] * sin
    v = axis[:, None] * cos - axis[None, :] * sin
    period = 0.26 * item.radius + 3.4 * unit
    if item.pattern == "striped":
        marked = (u + v) / (1.2 * period) % 1 < 0.42
    elif item.pattern == "dotted":
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


@cache
def _contours(name: str) -> tuple[Array, ...]:
    """Closed contours [points, 2] of a shape of radius about 1: the outline, then its holes."""
    turn = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    if name == "circle":
        return (circle,)
    if name == "ring":
        return circle * 1.05, circle * 0.5
    if name == "square":
        return (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.79,)
    if name == "triangle":
        return (np.array([[0, -1.0], [1.0, 0.78], [-1.0, 0.78]]) * 0.98,)
    if name == "star":
        angles = -math.pi / 2 + np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.1, 0.47)[:, None]
        return (radii * np.stack([np.cos(angles), np.sin(angles)], axis=-1),)
    if name == "cross":
        a, b = 1.0, 0.37
        corner = [(b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a)]
        return (np.array(corner + [(-x, -y) for x, y in corner]),)
    if name == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return (np.stack([x, -y - 2.5], axis=-1) / 16,)
    if name == "crescent":
        # The unit disc minus a disc of radius 0.82, centered 0.55 to the right.
        inner, shift = 0.82, 0.55
        tip = (1 - inner**2 + shift**2) / (2 * shift)
        outer_tip, inner_tip = math.acos(tip), math.acos((tip - shift) / inner)
        far = np.linspace(outer_tip, 2 * math.pi - outer_tip, 32)
        near = np.linspace(2 * math.pi - inner_tip, inner_tip, 24)
        arc = np.stack([np.cos(far), np.sin(far)], axis=-1)
        bite = np.stack([shift + inner * np.cos(near), inner * np.sin(near)], axis=-1)
        return ((np.concatenate([arc, bite]) + np.array([0.22, 0])) * 1.08,)
    raise ValueError(f"no contour for the shape '{name}'")
