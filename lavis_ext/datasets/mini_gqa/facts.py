"""Facts about a scene that follow from an answered question, as sets of atoms.

Question A entails question B of the same image if the atoms implied by A's answer include one of
the sets of atoms that are sufficient to answer B (GQA's ``entailed``; Hudson and Manning 2019,
section 3.5). The sets are sound but incomplete, so some entailments are missing from the data.
"""

from collections.abc import Iterable
from itertools import combinations

from lavis_ext.datasets.mini_gqa.scenes import Scene, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import CATEGORY_OF, KEY_OF, OPPOSITE
from lavis_ext.datasets.mini_gqa.wording import Description

Atom = tuple[object, ...]
Facts = frozenset[Atom]


def has(item: SceneObject, *keys: str) -> Facts:
    """Known values of the attribute types ``keys`` of ``item``."""
    known = {("has", item.id, key) for key in keys}
    return frozenset(known | {("has", item.id, "category") for key in keys if key == "name"})


def described(item: SceneObject, description: Description) -> Facts:
    """``description`` is true of ``item``."""
    return has(item, *(KEY_OF[value] for value in description.values))


def uniquely_described(item: SceneObject, description: Description) -> Facts:
    """``description`` is true of ``item`` alone ("the red circle")."""
    return described(item, description) | {("only", item.id, description.values)}


def is_not(item: SceneObject, value: str) -> Facts:
    """``item`` isn't ``value``."""
    return frozenset({("not", item.id, value)})


def none_of(description: Description) -> Facts:
    """``description`` is true of no object."""
    return frozenset({("none", description.values)})


def related(subject: SceneObject, relation: str, anchor: SceneObject) -> Facts:
    """``subject`` is ``relation`` ("above", ...) ``anchor``."""
    if relation in ("to the right of", "below"):
        subject, relation, anchor = anchor, OPPOSITE[relation], subject
    return frozenset({("related", subject.id, relation, anchor.id)})


def compared(a: SceneObject, b: SceneObject, key: str) -> Facts:
    """Known result of comparing the values of type ``key`` of ``a`` and ``b``."""
    return frozenset({("compared", key, frozenset({a.id, b.id}))})


def touching(a: SceneObject, b: SceneObject) -> Facts:
    """Known whether ``a`` and ``b`` touch."""
    return frozenset({("touching", frozenset({a.id, b.id}))})


def scene_known(key: str) -> Facts:
    """Known place or weather."""
    return frozenset({("scene", key)})


def scene_is_not(key: str, value: str) -> Facts:
    """The place or the weather isn't ``value``."""
    return frozenset({("scene not", key, value)})


def sufficient_for_existence(scene: Scene, description: Description) -> list[Facts]:
    """Sets of atoms, each sufficient to decide whether an object matches ``description``."""
    found = [item for item in scene.objects if description.matches(item)]
    if found:
        return [described(item, description) for item in found]
    sufficient: list[Facts] = []
    wider = set(description.values) | {
        CATEGORY_OF[value] for value in description.values if value in CATEGORY_OF
    }
    for values in _subsets(sorted(wider)):
        sufficient.append(frozenset({("none", values)}))
        matching = [
            item
            for item in scene.objects
            if all(item.value(KEY_OF[value]) == value for value in values)
        ]
        if len(matching) == 1:
            # The only circle is blue, so no circle is red.
            sufficient += [
                frozenset(
                    {("only", matching[0].id, values), ("has", matching[0].id, KEY_OF[value])}
                )
                for value in description.values
                if matching[0].value(KEY_OF[value]) != value
            ]
    return sufficient


def _subsets(values: Iterable[str]) -> Iterable[frozenset[str]]:
    values = list(values)
    for size in range(1, len(values) + 1):
        for subset in combinations(values, size):
            yield frozenset(subset)
