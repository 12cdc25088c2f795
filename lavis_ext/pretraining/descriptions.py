"""Texts about a mini-GQA scene, drawn from its scene graph: captions, sentences, mentions.

A mention is the phrase for an object in a question: "large red circle", "striped shape", "curved
shape".
"""

import random
from collections.abc import Collection
from dataclasses import dataclass

from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph
from lavis_ext.datasets.mini_gqa.query_questions import place_phrase
from lavis_ext.datasets.mini_gqa.scenes import MIDDLE_BAND
from lavis_ext.datasets.mini_gqa.vocabulary import (
    ADJECTIVE_ORDER,
    ANY_SHAPE,
    CATEGORY_OF,
    KEY_OF,
    World,
    article,
)

SWAP_ATTEMPTS = 12


def value_of(item: GraphObject, key: str) -> str | None:
    """An object's value of an attribute type (``World.values``); None if it has none."""
    if key == "name":
        return item.name
    if key == "category":
        return CATEGORY_OF[item.name]
    return next((value for value in item.attributes if KEY_OF[value] == key), None)


def adjectives(item: GraphObject, keys: Collection[str] = ADJECTIVE_ORDER) -> list[str]:
    """The object's values of the attribute types ``keys``, in the order of the words."""
    found = (value_of(item, key) for key in ADJECTIVE_ORDER if key in keys)
    return [value for value in found if value]


def phrase(item: GraphObject, keys: Collection[str] = ADJECTIVE_ORDER) -> str:
    """The object's name with its adjectives of the types ``keys``: "large striped red circle"."""
    return " ".join([*adjectives(item, keys), item.name])


def position(item: GraphObject, graph: SceneGraph) -> str:
    """The object's position, such as "top left" or "bottom"; empty in the middle."""
    x, y, width, height = item.box
    across, down = (x + width / 2) / graph.width, (y + height / 2) / graph.height
    words = []
    for part, names in ((down, ("top", "bottom")), (across, ("left", "right"))):
        if not MIDDLE_BAND[0] < part < MIDDLE_BAND[1]:
            words.append(names[0] if part < 0.5 else names[1])
    return " ".join(words)


def related(item: GraphObject, graph: SceneGraph, rng: random.Random) -> tuple[str, GraphObject]:
    """Draw one of the object's relations: its words, and the other object."""
    relation, other_id = rng.choice(item.relations)
    return relation, next(each for each in graph.objects if each.id == other_id)


def caption(item: GraphObject, graph: SceneGraph, rng: random.Random) -> str:
    """Draw a true caption of an object: all of its attributes, and often one more fact.

    That is its position, a relation to another object, or the scene.
    """
    text = phrase(item)
    words = f"{article(text)} {text}"
    kind = rng.random()
    if kind < 0.35 and (where := position(item, graph)):
        return f"{words} on the {where}"
    if kind < 0.7 and item.relations:
        relation, other = related(item, graph, rng)
        beside = phrase(other, ("color",))
        return f"{words} {relation} {article(beside)} {beside}"
    if kind < 0.85:
        return f"{words} {scene_phrase(graph)}"
    return words


def scene_phrase(graph: SceneGraph) -> str:
    """The place and its weather, such as "in a rainy street"."""
    return f"in a {graph.weather} {graph.place}"


def sentence(item: GraphObject, graph: SceneGraph, rng: random.Random) -> str:
    """Draw a true sentence about an object or the scene, in the words of GQA's ``fullAnswer``.

    Half of them state an attribute or the name: "the red gear is five-toothed".
    """
    kind = rng.random()
    if kind < 0.5:
        return Fact.draw(item, rng).words
    if kind < 0.65 and item.relations:
        relation, other = related(item, graph, rng)
        words = Mention.draw(item, rng).words
        return f"the {words} is {relation} the {Mention.draw(other, rng).words}"
    if kind < 0.75 and (where := position(item, graph)):
        side = rng.choice(where.split())
        return f"the {Mention.draw(item, rng).words} is at the {side} of the picture"
    if kind < 0.9:
        words = Mention.draw(item, rng).words
        return f"there is {article(words)} {words}"
    if kind < 0.95:
        return f"it is {graph.weather}"
    assert graph.place is not None
    return f"the scene is {place_phrase(graph.place)}"


def describe(item: GraphObject, graph: SceneGraph, rng: random.Random, *, sentences: float) -> str:
    """Draw a caption of an object or, with the probability ``sentences``, a sentence."""
    return (sentence if happens(sentences, rng) else caption)(item, graph, rng)


def happens(probability: float, rng: random.Random) -> bool:
    """Draw whether something happens. With 0 nothing is drawn, so that later draws stay."""
    return probability > 0 and rng.random() < probability


@dataclass(frozen=True, slots=True)
class Mention:
    """Adjectives and a noun (a name, a category or "shape") for an object."""

    values: tuple[str, ...]

    @classmethod
    def parse(cls, words: str) -> "Mention":
        """Parse words of a question. Raises ValueError for words that name no object."""
        found = words.removesuffix(f" {ANY_SHAPE}").split()
        if words.endswith(ANY_SHAPE) and found and f"{found[-1]} {ANY_SHAPE}" in KEY_OF:
            found[-1] = f"{found[-1]} {ANY_SHAPE}"
        values = tuple(word for word in found if word != ANY_SHAPE)
        if not values or any(value not in KEY_OF for value in values):
            raise ValueError(f"'{words}' is no mention of an object")
        return cls(values)

    @classmethod
    def draw(
        cls, item: GraphObject, rng: random.Random, *, leave_out: str | None = None
    ) -> "Mention":
        """Draw a true mention of ``item`` with up to two adjectives, without the type left out."""
        having = [key for key in ADJECTIVE_ORDER if key != leave_out and value_of(item, key)]
        keys = rng.sample(having, rng.choice((0, 1, 1, 2)))
        nouns = ("name", "name", "name", "category", None) if keys else ("name",)
        noun = rng.choice(nouns)
        if noun == leave_out:
            noun = "category"
        named = value_of(item, noun) if noun else None
        return cls((*adjectives(item, keys), *([named] if named else [])))

    @property
    def words(self) -> str:
        """The words without an article."""
        noun = [] if self._has_noun else [ANY_SHAPE]
        return " ".join([*self.values, *noun])

    @property
    def _has_noun(self) -> bool:
        return KEY_OF[self.values[-1]] in ("name", "category")

    def matches(self, graph: SceneGraph) -> bool:
        """Whether the mention is true of an object of the scene."""
        return any(
            all(value_of(item, KEY_OF[value]) == value for value in self.values)
            for item in graph.objects
        )

    def swapped(self, graph: SceneGraph, rng: random.Random, world: World) -> "Mention | None":
        """Replace one value, so that the mention is true of no object of the scene.

        None if no such mention is found in ``SWAP_ATTEMPTS`` draws.
        """
        for _ in range(SWAP_ATTEMPTS):
            place = rng.randrange(len(self.values))
            before, after = self.values[:place], self.values[place + 1 :]
            key = KEY_OF[self.values[place]]
            others = tuple(KEY_OF[value] for value in before + after)
            nouns = key in ("name", "category")
            value = rng.choice(world.nouns(key, others) if nouns else world.values[key])
            mention = Mention((*before, value, *after))
            if not mention.matches(graph):
                return mention
        return None


@dataclass(frozen=True, slots=True)
class Fact:
    """An attribute's value or the name of what a mention is about."""

    about: Mention
    value: str

    @classmethod
    def draw(cls, item: GraphObject, rng: random.Random) -> "Fact":
        """Draw a true fact about ``item``."""
        key = rng.choice([key for key in ("name", *ADJECTIVE_ORDER) if value_of(item, key)])
        value = value_of(item, key)
        assert value is not None
        return cls(Mention.draw(item, rng, leave_out=key), value)

    @property
    def words(self) -> str:
        """The sentence: "the red gear is five-toothed", "the small round shape is a coin"."""
        name = KEY_OF[self.value] == "name"
        said = f"{article(self.value)} {self.value}" if name else self.value
        return f"the {self.about.words} is {said}"

    def swapped(self, graph: SceneGraph, rng: random.Random, world: World) -> "Fact | None":
        """Replace the value, so that the sentence is true of no object of the scene.

        None if no such value is found in ``SWAP_ATTEMPTS`` draws.
        """
        key = KEY_OF[self.value]
        of_kind = world.categories[CATEGORY_OF[self.value]] if key == "name" else world.values[key]
        for _ in range(SWAP_ATTEMPTS):
            value = rng.choice(of_kind)
            if not Mention((*self.about.values, value)).matches(graph):
                return Fact(self.about, value)
        return None
