"""What an answered question tells about its scene, as sets of atoms.

Question A entails question B of the same image if the atoms that A's answer tells include one of
the sets of atoms that are enough to answer B (GQA's ``entailed``; Hudson and Manning 2019, section
3.5). Sets are sound and not complete: an entailment that they miss is left out of the data.
"""

from collections.abc import Iterable
from itertools import combinations

from lavis_ext.datasets.mini_gqa.scenes import Scene, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import CATEGORY_OF, KEY_OF, OPPOSITE
from lavis_ext.datasets.mini_gqa.wording import Description

Atom = tuple[object, ...]
Facts = frozenset[Atom]


def has(item: SceneObject, *keys: str) -> Facts:
    """The values of the attribute types ``keys`` of ``item`` are known."""
    known = {("has", item.id, key) for key in keys}
    return frozenset(known | {("has", item.id, "category") for key in keys if key == "name"})


def described(item: SceneObject, description: Description) -> Facts:
    """``description`` is known to be true of ``item``."""
    return has(item, *(KEY_OF[value] for value in description.values))


def referred(item: SceneObject, description: Description) -> Facts:
    """``described``, and ``item`` is known to be the only such object ("the red circle")."""
    return described(item, description) | {("only", item.id, description.values)}


def is_not(item: SceneObject, value: str) -> Facts:
    """``item`` is known not to be ``value``."""
    return frozenset({("not", item.id, value)})


def none_of(description: Description) -> Facts:
    """There is known to be nothing that fits ``description``."""
    return frozenset({("none", description.values)})


def related(subject: SceneObject, relation: str, anchor: SceneObject) -> Facts:
    """``subject`` is known to be ``relation`` ("above", ...) ``anchor``."""
    if relation in ("to the right of", "below"):
        subject, relation, anchor = anchor, OPPOSITE[relation], subject
    return frozenset({("related", subject.id, relation, anchor.id)})


def compared(a: SceneObject, b: SceneObject, key: str) -> Facts:
    """Whether ``a`` and ``b`` have the same value of type ``key`` is known."""
    return frozenset({("compared", key, frozenset({a.id, b.id}))})


def of_scene(key: str) -> Facts:
    """The place or the weather is known."""
    return frozenset({("scene", key)})


def scene_is_not(key: str, value: str) -> Facts:
    """The place or the weather is known not to be ``value``."""
    return frozenset({("scene not", key, value)})


def show_existence(scene: Scene, description: Description) -> list[Facts]:
    """Sets of atoms, each enough to know whether something fits ``description``."""
    found = [item for item in scene.objects if description.matches(item)]
    if found:
        return [described(item, description) for item in found]
    enough: list[Facts] = []
    wider = set(description.values) | {
        CATEGORY_OF[value] for value in description.values if value in CATEGORY_OF
    }
    for values in _subsets(sorted(wider)):
        enough.append(frozenset({("none", values)}))
        fitting = [
            item
            for item in scene.objects
            if all(item.value(KEY_OF[value]) == value for value in values)
        ]
        if len(fitting) == 1:
            # The only circle is blue, so no circle is red.
            enough += [
                frozenset({("only", fitting[0].id, values), ("has", fitting[0].id, KEY_OF[value])})
                for value in description.values
                if fitting[0].value(KEY_OF[value]) != value
            ]
    return enough


def _subsets(values: Iterable[str]) -> Iterable[frozenset[str]]:
    values = list(values)
    for size in range(1, len(values) + 1):
        for subset in combinations(values, size):
            yield frozenset(subset)
