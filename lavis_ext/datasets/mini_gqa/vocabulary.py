"""The words of mini-GQA's scenes, questions and answers."""

from typing import Final

CATEGORY_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "curved shape": ("circle", "ring", "heart", "crescent"),
    "angular shape": ("square", "triangle", "star", "cross"),
}
CATEGORY_OF: Final[dict[str, str]] = {
    name: category for category, names in CATEGORY_NAMES.items() for name in names
}
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

# Attribute types that questions ask for, by GQA's name, with their values.
OBJECT_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "name": tuple(CATEGORY_OF),
    "category": tuple(CATEGORY_NAMES),
    "color": tuple(COLORS),
    "pattern": ("plain", "striped", "dotted", "checkered"),
    "size": ("small", "large"),
}
POSITION_VALUES: Final[dict[str, tuple[str, str]]] = {
    "hposition": ("left", "right"),
    "vposition": ("top", "bottom"),
}
SCENE_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "place": ("meadow", "beach", "sea", "street", "forest"),
    "weather": ("sunny", "cloudy", "rainy", "snowy"),
}
KEY_OF: Final[dict[str, str]] = {
    value: key for key, values in OBJECT_VALUES.items() for value in values
}
ADJECTIVE_ORDER: Final = ("size", "pattern", "color")
"""English order: "a large striped red circle"."""

RELATIONS: Final = ("to the left of", "to the right of", "above", "below")
OPPOSITE: Final[dict[str, str]] = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


def article(noun_phrase: str) -> str:
    """The indefinite article of ``noun_phrase``: "an orange star", "a star"."""
    return "an" if noun_phrase[0] in "aeio" else "a"
