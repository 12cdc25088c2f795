"""The worlds of mini-GQA, and the words of their scenes, questions and answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ANY_SHAPE: Final = "shape"

COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 30, 36),
    "orange": (250, 134, 22),
    "yellow": (250, 226, 48),
    "green": (26, 140, 48),
    "blue": (36, 82, 216),
    "purple": (148, 44, 178),
    "white": (246, 246, 246),
    "black": (26, 26, 30),
}

POSITION_VALUES: Final[dict[str, tuple[str, str]]] = {
    "hposition": ("left", "right"),
    "vposition": ("top", "bottom"),
}
SCENE_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "place": ("meadow", "beach", "sea", "street", "forest"),
    "weather": ("sunny", "cloudy", "rainy", "snowy"),
}

RELATIONS: Final = ("to the left of", "to the right of", "above", "below")
TOUCHING: Final = "touching"
OPPOSITE: Final[dict[str, str]] = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


@dataclass(frozen=True, kw_only=True)
class World:
    """What is drawn and asked in one type of mini-GQA.

    Lengths are in pixels of a 128-pixel image and scale with the image side. Templates and rates of
    the questions are in ``templates`` and ``balance``, outlines of the objects in ``contours``.

    Attributes:
        name: the option ``world``.
        side: default side of an image in pixels.
        categories: names of the objects by category.
        attributes: attribute types of objects, in the order in which they are drawn, with their
            values. ``size`` is drawn with the layout.
        parts: attribute types that only some names have, with these names.
        listed: attribute types in the order of a scene graph's ``attributes``.
        referring: attribute types in referring expressions, in the order of the words.
        asked: attribute types of questions that draw one.
        compared: attribute types of comparisons; a repeated one is drawn more often.
        object_counts: numbers of objects of a scene, with their weights.
        radii: ranges of the objects' radii by size.
        spacing: smallest distance of two centers, as a multiple of the sum of the radii.
        tilt: largest rotation of an object in radians.
        beside: probability that an object is put beside the one before it, mostly in its color.
        outlines: width of the dark outline inside an object by value of ``outline``; None for a
            dark and a pale line around every contour.
    """

    name: str
    side: int
    categories: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, tuple[str, ...]]
    listed: tuple[str, ...]
    referring: tuple[str, ...]
    asked: tuple[str, ...]
    compared: tuple[str, ...]
    object_counts: Mapping[int, int]
    radii: Mapping[str, tuple[float, float]]
    spacing: float = 1.0
    tilt: float = 0.0
    beside: float = 0.0
    outlines: Mapping[str, float] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all categories."""
        return tuple(name for names in self.categories.values() for name in names)

    @property
    def category_of(self) -> dict[str, str]:
        """Category of each name."""
        return {name: category for category, names in self.categories.items() for name in names}

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Values of every attribute type, ``name`` and ``category`` first."""
        return {"name": self.names, "category": tuple(self.categories), **self.attributes}

    def nouns(self, key: str, adjectives: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Nouns of type ``key`` for objects that have the attribute types ``adjectives``."""
        if key == "any":
            return (ANY_SHAPE,)
        having = [set(self.parts[part]) for part in adjectives if part in self.parts]
        return tuple(
            noun
            for noun in self.values[key]
            if all(names.intersection(self.categories.get(noun, (noun,))) for names in having)
        )

    def has(self, name: str, key: str) -> bool:
        """Whether objects called ``name`` have the attribute type ``key``."""
        return name in self.parts.get(key, (name,))

    def kinds_of(self, noun: str) -> tuple[str, ...]:
        """Names that ``noun``, a category or "shape", may stand for."""
        return self.categories.get(noun, self.names)


SHAPES: Final = World(
    name="shapes",
    side=128,
    categories={
        "curved shape": ("circle", "ring", "heart", "crescent"),
        "angular shape": ("square", "triangle", "star", "cross"),
    },
    attributes={
        "color": tuple(COLORS),
        "pattern": ("plain", "striped", "dotted", "checkered"),
        "size": ("small", "large"),
    },
    parts={},
    listed=("color", "size", "pattern"),
    referring=("size", "pattern", "color"),
    asked=("color", "pattern", "size"),
    compared=("color", "color", "pattern", "size"),
    object_counts={2: 2, 3: 4, 4: 5, 5: 4, 6: 3},
    radii={"small": (10.5, 12.0), "large": (17.5, 21.0)},
    tilt=0.15,
)
"""Shapes that are easy to tell apart at 128 pixels."""

FINE: Final = World(
    name="fine",
    side=256,
    categories={
        "round shape": ("gear", "button", "coin", "dial"),
        "square shape": ("stamp", "socket", "tile", "card"),
    },
    attributes={
        "color": ("red", "orange", "yellow", "green", "blue", "purple"),
        "outline": ("thin-edged", "thick-edged"),
        "teeth": ("three-toothed", "five-toothed", "seven-toothed", "nine-toothed"),
        "holes": ("one-holed", "two-holed", "three-holed", "four-holed"),
        "letter": ("c-marked", "e-marked", "t-marked", "u-marked", "v-marked", "z-marked"),
        "notch": ("left-notched", "right-notched", "top-notched", "bottom-notched"),
        "size": ("small", "large"),
    },
    parts={
        "teeth": ("gear", "stamp"),
        "holes": ("button", "socket"),
        "letter": ("coin", "tile"),
        "notch": ("dial", "card"),
    },
    listed=("color", "size", "outline", "teeth", "holes", "letter", "notch"),
    referring=("size", "outline", "color"),
    asked=("color", "size", "outline", "teeth", "holes", "letter", "notch"),
    compared=("color", "outline", "letter", "letter"),
    object_counts={3: 2, 4: 3, 5: 4, 6: 4, 7: 3},
    radii={"small": (5.2, 6.0), "large": (7.8, 9.4)},
    spacing=1.35,
    beside=0.3,
    outlines={"thin-edged": 0.5, "thick-edged": 1.5},
)
"""Small objects whose names and attributes, but for category, color and size, are fine parts.

A part is one or two pixels of a 128-pixel image, and twice that of the 256 that are drawn.
"""

WORLDS: Final[dict[str, World]] = {world.name: world for world in (SHAPES, FINE)}

# A word means the same in every world.
CATEGORY_OF: Final[dict[str, str]] = {
    name: category for world in WORLDS.values() for name, category in world.category_of.items()
}
KEY_OF: Final[dict[str, str]] = {
    value: key
    for world in WORLDS.values()
    for key, values in world.values.items()
    for value in values
}
ADJECTIVE_ORDER: Final = (
    "size",
    "pattern",
    "outline",
    "teeth",
    "holes",
    "letter",
    "notch",
    "color",
)
"""English order: "a large striped red circle"."""


def article(noun_phrase: str) -> str:
    """The indefinite article of ``noun_phrase``: "an orange star", "a star"."""
    return "an" if noun_phrase[0] in "aeio" else "a"


def short(value: str) -> str:
    """A value as the answer to a question for it: "five" for "five-toothed", else itself."""
    return value.split("-")[0]
