"""Random scenes of flat shapes, their spatial relations and their GQA scene graphs.

Every attribute is drawn independently and uniformly, so the words of a question don't reveal its
answer. Lengths are in pixels of a 128-pixel image and scale with the image side.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_ext.datasets.mini_gqa.vocabulary import (
    CATEGORY_OF,
    OBJECT_VALUES,
    RELATIONS,
    SCENE_VALUES,
)

REFERENCE_SIDE = 128
OBJECT_COUNTS = (2, 3, 4, 5, 6)
OBJECT_COUNT_WEIGHTS = (2, 4, 5, 4, 3)
RADII = {"small": (10.5, 12.0), "large": (17.5, 21.0)}
# Centers at least the first distance apart are in a relation, those at most the second apart are
# not; in between, scene graph and questions leave the relation out.
RELATION_HOLDS, RELATION_FAILS = 18.0, -4.0
# Objects in this middle band have no position ("left"), as a share of the side.
MIDDLE_BAND = (0.40, 0.60)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape. ``x``, ``y``, ``radius`` in pixels of the image, ``angle`` in radians."""

    id: str
    name: str
    color: str
    pattern: str
    size: str
    x: int
    y: int
    radius: float
    angle: float

    def value(self, key: str) -> str:
        """The object's value of the attribute type ``key`` (see ``OBJECT_VALUES``)."""
        return CATEGORY_OF[self.name] if key == "category" else getattr(self, key)


@dataclass(frozen=True, slots=True)
class Scene:
    """A place, its weather and two to six objects in drawing order."""

    image_id: str
    side: int
    place: str
    weather: str
    objects: tuple[SceneObject, ...]

    def relation(self, subject: SceneObject, name: str, anchor: SceneObject) -> bool | None:
        """Whether ``subject`` is ``name`` ("above", ...) ``anchor``; None if ambiguous."""
        distance = {
            "to the left of": anchor.x - subject.x,
            "to the right of": subject.x - anchor.x,
            "above": anchor.y - subject.y,
            "below": subject.y - anchor.y,
        }[name]
        scale = self.side / REFERENCE_SIDE
        if distance >= RELATION_HOLDS * scale:
            return True
        return False if distance <= RELATION_FAILS * scale else None

    def position(self, item: SceneObject, key: str) -> str | None:
        """``left`` or ``right`` (``hposition``), ``top`` or ``bottom``; None near the middle."""
        names = ("left", "right") if key == "hposition" else ("top", "bottom")
        part = (item.x if key == "hposition" else item.y) / self.side
        if MIDDLE_BAND[0] < part < MIDDLE_BAND[1]:
            return None
        return names[0] if part < 0.5 else names[1]


def sample_scene(rng: random.Random, image_index: int, side: int) -> Scene:
    """Draw the scene of image number ``image_index``, ``side`` pixels wide and high."""
    while True:
        count = rng.choices(OBJECT_COUNTS, OBJECT_COUNT_WEIGHTS)[0]
        layout = _layout(rng, [rng.choice(OBJECT_VALUES["size"]) for _ in range(count)])
        if layout is not None:
            break
    scale = side / REFERENCE_SIDE
    objects = tuple(
        SceneObject(
            id=str(1_000_000 + 8 * image_index + number),
            name=rng.choice(OBJECT_VALUES["name"]),
            color=rng.choice(OBJECT_VALUES["color"]),
            pattern=rng.choice(OBJECT_VALUES["pattern"]),
            size=size,
            x=round(x * scale),
            y=round(y * scale),
            radius=radius * scale,
            angle=rng.uniform(-0.15, 0.15),
        )
        for number, (size, x, y, radius) in enumerate(layout)
    )
    return Scene(
        image_id=f"{image_index:07d}",
        side=side,
        place=rng.choice(SCENE_VALUES["place"]),
        weather=rng.choice(SCENE_VALUES["weather"]),
        objects=objects,
    )


def _layout(
    rng: random.Random, sizes: Sequence[str]
) -> list[tuple[str, float, float, float]] | None:
    """Draw a disc (size, x, y, radius) of each size; None after too many failed draws."""
    placed: list[tuple[str, float, float, float]] = []
    for size in sizes:
        radius = rng.uniform(*RADII[size])
        margin = 1.12 * radius + 3
        for _ in range(40):
            x = rng.uniform(margin, REFERENCE_SIDE - margin)
            y = rng.uniform(margin, REFERENCE_SIDE - margin)
            # Corners extend to 1.12 radii, so neighbors may overlap slightly.
            if all(math.hypot(x - a, y - b) >= radius + r for _, a, b, r in placed):
                placed.append((size, x, y, radius))
                break
        else:
            return None
    return placed


def scene_graph(scene: Scene, boxes: Sequence[Box]) -> dict[str, Any]:
    """The scene in GQA's scene graph format; ``boxes`` are (x, y, w, h) of the visible parts."""
    return {
        "width": scene.side,
        "height": scene.side,
        "location": scene.place,
        "weather": scene.weather,
        "objects": {
            item.id: {
                "name": item.name,
                "x": box[0],
                "y": box[1],
                "w": box[2],
                "h": box[3],
                "attributes": [item.color, item.size, item.pattern],
                "relations": [
                    {"name": name, "object": other.id}
                    for other in scene.objects
                    if other is not item
                    for name in RELATIONS
                    if scene.relation(item, name, other)
                ],
            }
            for item, box in zip(scene.objects, boxes, strict=True)
        },
    }
