"""Descriptions of objects, GQA's functional programs and the wording of questions."""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lavis_ext.datasets.mini_gqa.scenes import Scene, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import (
    ADJECTIVE_ORDER,
    ANY_SHAPE,
    CATEGORY_OF,
    KEY_OF,
    article,
)

_SLOT = re.compile(r"(\{a?\d\})(\W*)")


@dataclass(frozen=True, slots=True)
class Mention:
    """Words of a question or answer for an object; ``object_id`` is None for an absent one."""

    words: str
    object_id: str | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A noun (a name, a category or "shape") with adjectives, such as "large red circle"."""

    noun: str
    adjectives: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The words without an article."""
        return " ".join((*self.adjectives, self.noun))

    @property
    def values(self) -> frozenset[str]:
        """The attribute values in the words; "shape" is none."""
        named = () if self.noun == ANY_SHAPE else (self.noun,)
        return frozenset((*self.adjectives, *named))

    def matches(self, item: SceneObject) -> bool:
        """Whether the description is true of ``item``."""
        if self.noun not in (ANY_SHAPE, item.name, CATEGORY_OF[item.name]):
            return False
        return all(item.value(KEY_OF[value]) == value for value in self.adjectives)

    def mention(self, item: SceneObject | None = None) -> Mention:
        """The words as a mention of ``item``, or of an absent object."""
        return Mention(self.words, item.id if item else None)


def describe(item: SceneObject, keys: Sequence[str], noun_key: str = "name") -> Description:
    """Describe ``item`` by the attribute types ``keys`` and the noun of type ``noun_key``."""
    values = (item.value(key) for key in ADJECTIVE_ORDER if key in keys)
    noun = None if noun_key == "any" else item.value(noun_key)
    return Description(noun or ANY_SHAPE, tuple(value for value in values if value))


def referring_expression(
    rng: random.Random, scene: Scene, item: SceneObject, avoid: Collection[str] = ()
) -> Description | None:
    """A description that is true of ``item`` alone, without the attribute types ``avoid``.

    It has the fewest adjectives possible; None if two aren't sufficient.
    """
    nouns = [key for key in ("name", "category", "any") if key not in avoid]
    if "name" in avoid:
        rng.shuffle(nouns)
    keys = [key for key in scene.world.referring if key not in avoid]
    rng.shuffle(keys)
    for count in (0, 1, 2):
        for chosen in combinations(keys, count):
            for noun in nouns:
                # Prefer "the red circle" to "the red shape" if the name isn't avoided.
                if noun != "name" and "name" not in avoid and count < 2 and rng.random() < 0.6:
                    continue
                description = describe(item, chosen, noun)
                if sum(description.matches(other) for other in scene.objects) == 1:
                    return description
    return None


@dataclass(slots=True)
class Program:
    """GQA's ``semantic`` list: steps of (operation, argument, dependencies)."""

    steps: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    def add(self, operation: str, argument: str, *dependencies: int) -> int:
        """Append a step and return its index."""
        self.steps.append((operation, argument, dependencies))
        return len(self.steps) - 1

    def select(self, description: Description, found: Sequence[SceneObject]) -> int:
        """Append the steps that select ``description``, and return the last one's index.

        ``found`` are the annotated objects.
        """
        ids = ",".join(item.id for item in found) or "-"
        return self.filter(self.add("select", f"{description.noun} ({ids})"), description)

    def filter(self, step: int, description: Description) -> int:
        """Append filters by the adjectives of ``description``, and return the last step's index."""
        for value in description.adjectives:
            step = self.add(f"filter {KEY_OF[value]}", value, step)
        return step

    def semantic(self) -> list[dict[str, Any]]:
        """The steps in GQA's format."""
        return [
            {"operation": operation, "dependencies": list(dependencies), "argument": argument}
            for operation, argument, dependencies in self.steps
        ]

    def text(self) -> str:
        """GQA's ``semanticStr``."""
        return "->".join(
            f"{operation}: {argument}" + (f" {list(dependencies)}" if dependencies else "")
            for operation, argument, dependencies in self.steps
        )


def fill(template: str, mentions: Sequence[Mention]) -> tuple[str, dict[str, str]]:
    """Put ``mentions`` into ``{0}`` (bare) or ``{a0}`` (with a or an) of ``template``.

    Returns:
        The sentence, and GQA's annotations of it: object ids by word index or "start:end".
    """
    words: list[str] = []
    spans: dict[str, str] = {}
    for token in template.split():
        slot = _SLOT.fullmatch(token) if token[0] == "{" else None
        if slot is None:
            words.append(token)
            continue
        mention = mentions[int(slot[1][-2])]
        if "a" in slot[1]:
            words.append(article(mention.words))
        start = len(words)
        words += mention.words.split()
        if mention.object_id is not None:
            span = str(start) if len(words) == start + 1 else f"{start}:{len(words)}"
            spans[span] = mention.object_id
        words[-1] += slot[2]
    sentence = " ".join(words)
    return sentence[0].upper() + sentence[1:], spans
