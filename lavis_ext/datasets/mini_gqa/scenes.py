"""Random scenes of flat shapes, their spatial relations and their GQA scene graphs.

Every attribute is drawn independently and uniformly, so the words of a question don't reveal its
answer. Lengths are in pixels of a 128-pixel image and scale with the image side.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lavis_ext.datasets.mini_gqa.vocabulary import (
    CATEGORY_OF,
    RELATIONS,
    SCENE_VALUES,
    TOUCHING,
    World,
    short,
)

REFERENCE_SIDE = 128
# Centers at least the first distance apart are in a relation, those at most the second apart are
# not; in between, scene graph and questions leave the relation out.
RELATION_HOLDS, RELATION_FAILS = 18.0, -4.0
# Objects in this middle band have no position ("left"), as a share of the side.
MIDDLE_BAND = (0.40, 0.60)
# Half the side or the diameter of a body with fine parts, in radii, and the depth of its teeth.
BODY, TOOTH_DEPTH = 0.9, 1.2
# Neighbors that touch overlap by more than a tooth, so that they touch between two teeth too.
OVERLAP, GAP = TOOTH_DEPTH + 0.5, 2.25
SAME_COLOR = 0.7

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape. ``x``, ``y``, ``radius`` in pixels of the image, ``angle`` in radians.

    ``attributes`` are its values by attribute type.
    """

    id: str
    name: str
    attributes: Mapping[str, str]
    x: int
    y: int
    radius: float
    angle: float

    def value(self, key: str) -> str | None:
        """Value of an attribute type (see ``World.values``); None if the object has none."""
        if key in ("name", "category"):
            return self.name if key == "name" else CATEGORY_OF[self.name]
        return self.attributes.get(key)


@dataclass(frozen=True, slots=True)
class Scene:
    """A place, its weather and the objects in drawing order.

    ``neighbors`` are pairs of objects' ids that are side by side, and whether they touch.
    """

    world: World
    image_id: str
    side: int
    place: str
    weather: str
    objects: tuple[SceneObject, ...]
    neighbors: Mapping[frozenset[str], bool] = field(default_factory=dict)

    def relation(self, subject: SceneObject, name: str, anchor: SceneObject) -> bool | None:
        """Whether ``subject`` is ``name`` ("above", ...) ``anchor``; None if ambiguous."""
        if name == TOUCHING:
            return self.neighbors.get(frozenset((subject.id, anchor.id)), False)
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


def sample_scene(rng: random.Random, image_index: int, side: int, world: World) -> Scene:
    """Draw the scene of image number ``image_index``, ``side`` pixels wide and high."""
    while True:
        count = rng.choices(list(world.object_counts), list(world.object_counts.values()))[0]
        sizes = [rng.choice(world.attributes["size"]) for _ in range(count)]
        layout = _layout(rng, sizes, world)
        if layout is not None:
            break
    scale = side / REFERENCE_SIDE
    drawn = []
    for number, place in enumerate(layout):
        name = rng.choice(world.names)
        attributes = {
            key: rng.choice(values)
            for key, values in world.attributes.items()
            if key != "size" and world.has(name, key)
        }
        attributes["size"] = place.size
        drawn.append((name, attributes, rng.uniform(-world.tilt, world.tilt)))
        if place.touches is not None:
            _fit_pair(rng, layout[number - 1 : number + 1], [drawn[-2][1], attributes], world)
    objects = tuple(
        SceneObject(
            id=str(1_000_000 + 8 * image_index + number),
            name=name,
            attributes=attributes,
            x=round(place.x * scale),
            y=round(place.y * scale),
            radius=place.radius * scale,
            angle=angle,
        )
        for number, (place, (name, attributes, angle)) in enumerate(zip(layout, drawn, strict=True))
    )
    return Scene(
        world=world,
        image_id=f"{image_index:07d}",
        side=side,
        place=rng.choice(SCENE_VALUES["place"]),
        weather=rng.choice(SCENE_VALUES["weather"]),
        objects=objects,
        neighbors={
            frozenset((before.id, item.id)): place.touches
            for before, item, place in zip(objects, objects[1:], layout[1:], strict=False)
            if place.touches is not None
        },
    )


class _Place(NamedTuple):
    """A disc for an object; ``touches`` the one before it or not, None if it isn't beside it."""

    size: str
    x: float
    y: float
    radius: float
    touches: bool | None = None


def _layout(rng: random.Random, sizes: Sequence[str], world: World) -> list[_Place] | None:
    """Draw a disc of each size; None after too many failed draws."""
    placed: list[_Place] = []
    for size in sizes:
        radius = rng.uniform(*world.radii[size])
        margin = 1.12 * radius + 3
        touches: bool | None = None
        if world.beside and placed and placed[-1].touches is None:
            touches = rng.random() < 0.5 if rng.random() < world.beside else None
        for _ in range(40):
            if touches is None:
                x = rng.uniform(margin, REFERENCE_SIDE - margin)
                y = rng.uniform(margin, REFERENCE_SIDE - margin)
            else:
                last = placed[-1]
                distance = BODY * (last.radius + radius) + (-OVERLAP if touches else GAP)
                dx, dy = rng.choice(((1, 0), (-1, 0), (0, 1), (0, -1)))
                x, y = last.x + dx * distance, last.y + dy * distance
            others = placed if touches is None else placed[:-1]
            # Corners extend to 1.12 radii, so neighbors may overlap slightly.
            if all(
                math.hypot(x - o.x, y - o.y) >= world.spacing * (radius + o.radius) for o in others
            ) and (touches is None or margin <= min(x, y) <= max(x, y) <= REFERENCE_SIDE - margin):
                placed.append(_Place(size, x, y, radius, touches))
                break
        else:
            return None
    return placed


def _fit_pair(
    rng: random.Random, places: Sequence[_Place], attributes: Sequence[dict[str, str]], world: World
) -> None:
    """Give two neighbors mostly one color, and no notch where they meet."""
    if rng.random() < SAME_COLOR:
        attributes[1]["color"] = attributes[0]["color"]
    across, down = places[1].x - places[0].x, places[1].y - places[0].y
    sides = ("left", "right") if abs(across) > abs(down) else ("top", "bottom")
    if across + down < 0:
        sides = sides[::-1]
    # The first object is at the second one's sides[0], so their notches must not face each other.
    for values, facing in zip(attributes, reversed(sides), strict=True):
        if "notch" in values and short(values["notch"]) == facing:
            values["notch"] = rng.choice(
                [value for value in world.attributes["notch"] if short(value) != facing]
            )


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
                "attributes": [
                    item.attributes[key] for key in scene.world.listed if key in item.attributes
                ],
                "relations": [
                    {"name": name, "object": other.id}
                    for other in scene.objects
                    if other is not item
                    for name in (*RELATIONS, TOUCHING)
                    if scene.relation(item, name, other)
                ],
            }
            for item, box in zip(scene.objects, boxes, strict=True)
        },
    }
