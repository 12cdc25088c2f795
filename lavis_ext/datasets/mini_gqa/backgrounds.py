"""Procedural backgrounds: five places under four kinds of weather.

They are paler or duller than the objects' colors, never uniform, and contain nothing that resembles
one of the shapes. All functions take and return float32 RGB arrays [side, side, 3] in 0..255.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

Array = np.ndarray
RGB = tuple[float, float, float]


def paint_background(place: str, weather: str, side: int, rng: np.random.Generator) -> Array:
    """Paint ``place`` in ``weather`` as a float32 array [side, side, 3], 0..255."""
    canvas = _PLACES[place](side, rng)
    canvas = _WEATHERS[weather](canvas, rng)
    canvas += rng.normal(0, 4, (side, side, 1)).astype(np.float32)
    return np.clip(canvas, 0, 255)


def _smooth_noise(side: int, cells: tuple[int, int], rng: np.random.Generator) -> Array:
    """Noise [side, side, 1] in -1..1, interpolated from ``cells`` (rows, columns) random values."""
    coarse = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
    fine = coarse.resize((side, side), Image.Resampling.BICUBIC)
    return np.array(fine, dtype=np.float32)[..., None]


def _bands(side: int, stops: list[tuple[float, RGB]]) -> Array:
    """Vertical color gradient through ``stops``: (position from the top in 0..1, color)."""
    heights = np.linspace(0, 1, side)
    positions = [stop for stop, _ in stops]
    channels = [np.interp(heights, positions, [color[c] for _, color in stops]) for c in range(3)]
    column = np.stack(channels, axis=-1).astype(np.float32)
    return np.repeat(column[:, None, :], side, axis=1)


def _meadow(side: int, rng: np.random.Generator) -> Array:
    edge = rng.uniform(0.25, 0.35)
    canvas = _bands(
        side,
        [
            (0, (178, 212, 238)),
            (edge, (214, 228, 232)),
            (edge + 0.02, (158, 196, 112)),
            (1, (128, 172, 88)),
        ],
    )
    grass = _smooth_noise(side, (side // 8, side // 2), rng) * 16
    grass[: int(edge * side)] = 0
    return canvas + grass * np.array([1, 1, 0.6], np.float32)


def _beach(side: int, rng: np.random.Generator) -> Array:
    edge = rng.uniform(0.3, 0.4)
    canvas = _bands(
        side,
        [
            (0, (188, 222, 240)),
            (edge - 0.16, (206, 232, 240)),
            (edge - 0.14, (96, 184, 196)),
            (edge, (132, 208, 208)),
            (edge + 0.03, (236, 218, 176)),
            (1, (222, 194, 142)),
        ],
    )
    sand = rng.normal(0, 9, (side, side, 1)).astype(np.float32)
    sand[: int(edge * side)] = 0
    return canvas + sand + _smooth_noise(side, (6, 6), rng) * 5


def _sea(side: int, rng: np.random.Generator) -> Array:
    edge = rng.uniform(0.12, 0.2)
    canvas = _bands(
        side,
        [
            (0, (196, 220, 236)),
            (edge, (216, 230, 236)),
            (edge + 0.02, (112, 164, 200)),
            (1, (66, 122, 172)),
        ],
    )
    rows = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    bend = _smooth_noise(side, (4, 10), rng)
    waves = np.sin(rows * rng.uniform(80, 110) + bend * 4) * 14
    waves[: int((edge + 0.02) * side)] = 0
    return canvas + waves


def _street(side: int, rng: np.random.Generator) -> Array:
    edge = int(side * rng.uniform(0.38, 0.48))
    canvas = _bands(side, [(0, (196, 204, 212)), (1, (196, 204, 212))])
    x = 0
    while x < side:
        width, top = int(side * rng.uniform(0.14, 0.26)), int(side * rng.uniform(0.02, 0.16))
        house = np.array([176, 156, 142]) + rng.uniform(-22, 22) + rng.uniform(-8, 8, 3)
        canvas[top:edge, x : x + width] = house
        step = max(6, side // 14)
        for row in range(top + step // 2, edge - step // 2, step):
            for column in range(x + step // 2, min(x + width, side) - step // 2, step):
                canvas[row : row + step // 2, column : column + step // 2] = house * 0.72
        x += width + side // 40
    canvas[edge:] = np.array([128, 130, 134])
    canvas[edge : edge + side // 32] = np.array([172, 172, 168])
    lane, offset, dash = int((edge + side) / 2), int(rng.integers(0, side // 5)), side // 5
    for start in range(-offset, side, dash):
        canvas[lane : lane + side // 40 + 1, max(start, 0) : max(start + dash // 2, 0)] = 206
    return canvas + _smooth_noise(side, (8, 8), rng) * 5


def _forest(side: int, rng: np.random.Generator) -> Array:
    canvas = _bands(side, [(0, (92, 122, 92)), (0.75, (108, 132, 94)), (1, (112, 100, 74))])
    canvas += _smooth_noise(side, (side // 6, side // 6), rng) * np.array([16, 24, 14], np.float32)
    for x in np.linspace(0, side, 7)[:-1] + rng.uniform(0, side / 9, 6):
        width = int(side * rng.uniform(0.03, 0.06))
        shade = np.linspace(1.1, 0.8, width, dtype=np.float32)[None, :, None]
        trunk = canvas[: int(side * rng.uniform(0.8, 0.95)), int(x) : int(x) + width]
        trunk[:] = np.array([112, 86, 64], np.float32) * shade[:, : trunk.shape[1]]
    return canvas


def _sunny(canvas: Array, rng: np.random.Generator) -> Array:
    side = len(canvas)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    distance = np.hypot(rows, columns - float(rng.integers(0, 2)))[..., None]
    glow = np.exp(-distance * 2.2) * np.array([120, 96, 10], np.float32)
    return canvas * np.array([1.08, 1.04, 0.9], np.float32) + glow


def _cloudy(canvas: Array, rng: np.random.Generator) -> Array:
    gray = canvas.mean(axis=-1, keepdims=True)
    clouds = _smooth_noise(len(canvas), (5, 4), rng)
    clouds *= np.linspace(1, 0, len(canvas), dtype=np.float32)[:, None, None] ** 0.7
    return (0.5 * canvas + 0.5 * gray) * 0.88 + clouds * 50


def _rainy(canvas: Array, rng: np.random.Generator) -> Array:
    side = len(canvas)
    rows, columns = np.mgrid[0:side, 0:side]
    # A drop is a run of pixels along one slanted line: noise over (line, run) cells.
    line = columns + rows // 4
    run = rows // max(4, side // 14)
    drops = (rng.random((side // 3 + 8, 2 * side)) < 0.07)[run, line].astype(np.float32)
    return canvas * np.array([0.56, 0.60, 0.68], np.float32) + drops[..., None] * 62


def _snowy(canvas: Array, rng: np.random.Generator) -> Array:
    side = len(canvas)
    canvas = canvas * 0.62 + np.array([84, 88, 96], np.float32)
    unit = max(1, side // 64)
    flakes = np.kron(rng.random((side // unit + 1,) * 2) < 0.035, np.ones((unit, unit)))
    return np.where(flakes[:side, :side, None] > 0, 252, canvas).astype(np.float32)


_PLACES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "meadow": _meadow,
    "beach": _beach,
    "sea": _sea,
    "street": _street,
    "forest": _forest,
}
_WEATHERS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "sunny": _sunny,
    "cloudy": _cloudy,
    "rainy": _rainy,
    "snowy": _snowy,
}
