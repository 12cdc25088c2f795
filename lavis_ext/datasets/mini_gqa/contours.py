"""Contours of the objects: outlines and holes, in units of an object's radius."""

import math
from functools import cache
from itertools import pairwise

import numpy as np

from lavis_ext.datasets.mini_gqa.scenes import BODY, TOOTH_DEPTH, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import short

Array = np.ndarray

# Lengths of fine parts in pixels of a 128-pixel image.
HOLE_RADIUS = 0.8
NOTCH_HALF_WIDTH, NOTCH_DEPTH = 1.1, 2.0
STROKE = 1.1
COUNTS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TURNS = {"right": 0.0, "bottom": math.pi / 2, "left": math.pi, "top": -math.pi / 2}


def contours(item: SceneObject, unit: float) -> tuple[Array, ...]:
    """Closed contours [points, 2] (x, y) of an object, in radii: the outline, then its holes.

    ``unit`` is the length in pixels of a pixel of a 128-pixel image.
    """
    if any(item.value(part) for part in ("teeth", "holes", "letter", "notch")):
        return _fine_contours(item, unit / item.radius)
    return _contours(item.name)


def _fine_contours(item: SceneObject, unit: float) -> tuple[Array, ...]:
    """A round or square body with the part that the object's name stands for."""
    turn = np.linspace(0, 2 * math.pi, 720, endpoint=False)
    across = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    # Radii of the body's edge in each direction.
    edge = np.full(len(turn), BODY)
    if item.value("category") == "square shape":
        edge = BODY / np.abs(across).max(axis=1)
    if teeth := item.value("teeth"):
        # Teeth stand at equal distances along the edge, with one in the middle at the top.
        steps = np.hypot(
            *np.diff(edge[:, None] * across, axis=0, append=edge[:1, None] * across[:1]).T
        )
        along = np.cumsum(steps) / steps.sum() + 0.25
        gaps = (along * COUNTS.index(short(teeth)) + 0.25) % 1 >= 0.5
        return ((edge - gaps * TOOTH_DEPTH * unit)[:, None] * across,)
    body = edge[:, None] * across
    if holes := item.value("holes"):
        count = COUNTS.index(short(holes))
        places = np.zeros((1, 2))
        if count > 1:
            angles = (
                2 * math.pi * np.arange(count) / count
                - math.pi / 2
                + 0.25 * math.pi * (count % 2 == 0)
            )
            places = 0.42 * BODY * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return (body, *(place + HOLE_RADIUS * unit * across[::30] for place in places))
    if letter := item.value("letter"):
        return (body, *_strokes(short(letter), 0.5 * BODY, STROKE * unit / 2))
    notch = item.value("notch")
    assert notch is not None
    angle = TURNS[short(notch)]
    toward = np.array([math.cos(angle), math.sin(angle)])
    aside = np.array([-toward[1], toward[0]])
    far, near = body @ toward, np.abs(body @ aside)
    kept = ~((near < NOTCH_HALF_WIDTH * unit) & (far > 0))
    # Start behind the notch, so that its corners close the contour.
    first = int(np.argmin(far))
    order = np.roll(np.arange(len(body)), -first)
    points = body[order][kept[order]]
    split = int(np.flatnonzero(np.diff(kept[order].astype(int)) == -1)[0]) + 1
    depth = far[~kept].max() - NOTCH_DEPTH * unit
    sides = np.sign(points[[split - 1, split]] @ aside)
    corners = depth * toward + sides[:, None] * NOTCH_HALF_WIDTH * unit * aside
    return (np.concatenate([points[:split], corners, points[split:]]),)


LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "c": (((0.8, -1), (-0.8, -1), (-0.8, 1), (0.8, 1)),),
    "e": (((0.8, -1), (-0.8, -1), (-0.8, 1), (0.8, 1)), ((-0.8, 0), (0.6, 0))),
    "t": (((-0.9, -1), (0.9, -1)), ((0, -1), (0, 1))),
    "u": (((-0.8, -1), (-0.8, 1), (0.8, 1), (0.8, -1)),),
    "v": (((-0.8, -1), (0, 1), (0.8, -1)),),
    "z": (((-0.8, -1), (0.8, -1), (-0.8, 1), (0.8, 1)),),
}
"""Lines of each letter, in half its height, y downward."""


def _strokes(letter: str, half: float, pen: float) -> list[Array]:
    """A quadrilateral for each stroke of ``letter``, ``2 * half`` high and ``2 * pen`` thick."""
    shapes = []
    for line in LETTERS[letter]:
        points = np.array(line) * half
        for start, end in pairwise(points):
            along = (end - start) / np.hypot(*(end - start)) * pen
            aside = np.array([-along[1], along[0]])
            start, end = start - along, end + along
            shapes.append(np.array([start + aside, end + aside, end - aside, start - aside]))
    return shapes


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
