"""The balanced subset: nearly uniform answers within each family of questions.

GQA balances answers within its local and global groups (Hudson and Manning 2019, section 3.4).
Here each family of yes/no questions has as many of one as of the other, from the same local groups
where possible; the two options of a choice are correct equally often; no answer of an open family
exceeds an equal share.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil

from lavis_ext.datasets.mini_gqa.questions import Question
from lavis_ext.datasets.mini_gqa.vocabulary import FINE, SHAPES, World

# A family is ``types.detailed``, and the attribute asked for.
_SHAPE_RATES = {
    "directWhich.color": 0.75,
    "directOf.color": 0.75,
    "directWhich.pattern": 0.45,
    "directOf.pattern": 0.45,
    "directWhich.size": 0.25,
    "directOf.size": 0.25,
    "directWhich.color related": 0.35,
    "directWhich.pattern related": 0.15,
    "positionQuery.hposition": 0.15,
    "positionQuery.vposition": 0.15,
    "categoryAttr.shape": 0.7,
    "categoryAttr.curved shape": 0.25,
    "categoryAttr.angular shape": 0.25,
    "categoryThat.curved shape": 0.25,
    "categoryThat.angular shape": 0.25,
    "category.curved shape": 0.1,
    "category.angular shape": 0.1,
    "relS.shape": 0.4,
    "categoryRelS.curved shape": 0.15,
    "categoryRelS.angular shape": 0.15,
    "place": 0.55,
    "weather": 0.55,
    "exist.name": 0.5,
    "existAttr.name": 0.65,
    "existAttr.any": 0.2,
    "existAttr.category": 0.2,
    "existThat.color": 0.08,
    "existThat.pattern": 0.08,
    "existThat.size": 0.08,
    "existAttrNot.color": 0.08,
    "existAttrNot.pattern": 0.08,
    "existAttrNot.size": 0.06,
    "existRelS": 0.3,
    "verifyAttr.color": 0.3,
    "verifyAttr.pattern": 0.16,
    "verifyAttr.size": 0.12,
    "positionVerify.hposition": 0.08,
    "positionVerify.vposition": 0.08,
    "relVerify": 0.3,
    "placeVerify": 0.2,
    "weatherVerify": 0.2,
    "existOr": 0.3,
    "existAnd": 0.3,
    "existAttrOr": 0.2,
    "existAttrAnd": 0.2,
    "verifyAttrAnd.color": 0.04,
    "verifyAttrAnd.pattern": 0.04,
    "verifyAttrAnd.size": 0.04,
    "twoSame.color": 0.2,
    "twoSame.pattern": 0.1,
    "twoSame.size": 0.1,
    "twoDifferent.color": 0.2,
    "twoDifferent.pattern": 0.1,
    "twoDifferent.size": 0.1,
    "chooseAttr.color": 0.5,
    "chooseAttr.pattern": 0.25,
    "chooseAttr.size": 0.18,
    "positionChoose.hposition": 0.08,
    "positionChoose.vposition": 0.08,
    "relChooser.horizontal": 0.12,
    "relChooser.vertical": 0.12,
    "categoryThisChoose": 0.25,
    "placeChoose": 0.18,
    "weatherChoose": 0.16,
}
_FINE_RATES = {
    "directWhich.color": 0.4,
    "directWhich.size": 0.15,
    "directWhich.outline": 0.2,
    "directWhich.teeth": 0.3,
    "directWhich.holes": 0.3,
    "directWhich.notch": 0.3,
    "directWhich.letter": 0.35,
    "directOf.color": 0.4,
    "directOf.size": 0.15,
    "directOf.outline": 0.2,
    "directOf.teeth": 0.3,
    "directOf.holes": 0.3,
    "directOf.notch": 0.3,
    "directOf.letter": 0.35,
    "directWhich.color related": 0.25,
    "directWhich.letter related": 0.15,
    "positionQuery.hposition": 0.12,
    "positionQuery.vposition": 0.12,
    "categoryAttr.shape": 0.6,
    "categoryAttr.round shape": 0.25,
    "categoryAttr.square shape": 0.25,
    "categoryThat.round shape": 0.25,
    "categoryThat.square shape": 0.25,
    "category.round shape": 0.1,
    "category.square shape": 0.1,
    "relS.shape": 0.35,
    "categoryRelS.round shape": 0.15,
    "categoryRelS.square shape": 0.15,
    "place": 0.2,
    "weather": 0.2,
    "exist.name": 0.4,
    "existAttr.name": 0.6,
    "existAttr.any": 0.15,
    "existAttr.category": 0.15,
    "existThat.color": 0.05,
    "existThat.size": 0.05,
    "existThat.outline": 0.05,
    "existThat.teeth": 0.05,
    "existThat.holes": 0.05,
    "existThat.letter": 0.05,
    "existThat.notch": 0.05,
    "existAttrNot.color": 0.05,
    "existAttrNot.size": 0.05,
    "existAttrNot.outline": 0.05,
    "existAttrNot.teeth": 0.05,
    "existAttrNot.holes": 0.05,
    "existAttrNot.letter": 0.05,
    "existAttrNot.notch": 0.05,
    "existRelS": 0.3,
    "verifyAttr.color": 0.15,
    "verifyAttr.size": 0.1,
    "verifyAttr.outline": 0.15,
    "verifyAttr.teeth": 0.15,
    "verifyAttr.holes": 0.15,
    "verifyAttr.letter": 0.15,
    "verifyAttr.notch": 0.15,
    "positionVerify.hposition": 0.08,
    "positionVerify.vposition": 0.08,
    "relVerify": 0.2,
    "relVerify.touching": 0.25,
    "placeVerify": 0.1,
    "weatherVerify": 0.1,
    "existOr": 0.2,
    "existAnd": 0.2,
    "existAttrOr": 0.15,
    "existAttrAnd": 0.15,
    "verifyAttrAnd.color": 0.04,
    "verifyAttrAnd.size": 0.04,
    "verifyAttrAnd.outline": 0.04,
    "verifyAttrAnd.teeth": 0.04,
    "verifyAttrAnd.holes": 0.04,
    "verifyAttrAnd.letter": 0.04,
    "verifyAttrAnd.notch": 0.04,
    "twoSame.color": 0.15,
    "twoSame.outline": 0.12,
    "twoSame.letter": 0.15,
    "twoDifferent.color": 0.15,
    "twoDifferent.outline": 0.12,
    "twoDifferent.letter": 0.15,
    "chooseAttr.color": 0.2,
    "chooseAttr.size": 0.1,
    "chooseAttr.outline": 0.15,
    "chooseAttr.teeth": 0.2,
    "chooseAttr.holes": 0.2,
    "chooseAttr.letter": 0.2,
    "chooseAttr.notch": 0.2,
    "positionChoose.hposition": 0.06,
    "positionChoose.vposition": 0.06,
    "relChooser.horizontal": 0.1,
    "relChooser.vertical": 0.1,
    "categoryThisChoose": 0.25,
    "placeChoose": 0.1,
    "weatherChoose": 0.1,
}
RATES: dict[str, dict[str, float]] = {SHAPES.name: _SHAPE_RATES, FINE.name: _FINE_RATES}
"""Balanced questions per image for each family, by world."""


def select_balanced(
    questions: Iterable[Question], images: int, rng: random.Random, world: World
) -> set[str]:
    """Ids of the balanced subset of one split's ``questions`` about ``images`` images."""
    families: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        families[question.family].append(question)
    chosen: set[str] = set()
    for family in sorted(families):
        members = _spread_over_images(families[family], rng)
        quota = RATES[world.name][family] * images
        kind = members[0].structural
        if kind == "query":
            picked = _uniform(members, quota)
        elif kind == "choose":
            halves = [
                _uniform([m for m in members if m.option == option], quota / 2) for option in (0, 1)
            ]
            picked = _equal(*halves)
        else:
            picked = _pair_yes_no(members, quota)
        chosen.update(question.id for question in picked)
    return chosen


def _spread_over_images(members: Sequence[Question], rng: random.Random) -> list[Question]:
    """The questions in random order, with every image's first before any image's second."""
    seen: dict[str, int] = defaultdict(int)
    order = list(members)
    rng.shuffle(order)
    ranked = []
    for question in order:
        ranked.append((seen[question.image_id], question))
        seen[question.image_id] += 1
    return [question for _, question in sorted(ranked, key=lambda pair: pair[0])]


def _uniform(members: Sequence[Question], quota: float) -> list[Question]:
    """Up to ``quota`` questions, with no answer above an equal share."""
    share = ceil(quota / len({question.answer for question in members} or {""}))
    taken: dict[str, int] = defaultdict(int)
    picked: list[Question] = []
    for question in members:
        if taken[question.answer] < share and len(picked) < _count(quota):
            taken[question.answer] += 1
            picked.append(question)
    return picked


def _count(quota: float) -> int:
    """At least one, so that small sets have questions of every family."""
    return max(1, round(quota))


def _equal(a: list[Question], b: list[Question]) -> list[Question]:
    count = min(len(a), len(b))
    return a[:count] + b[:count]


def _pair_yes_no(members: Sequence[Question], quota: float) -> list[Question]:
    """Equally many "yes" and "no", from the same local groups where possible."""
    groups: dict[str, tuple[list[Question], list[Question]]] = defaultdict(lambda: ([], []))
    for question in members:
        groups[question.local][question.answer == "no"].append(question)
    rounds: list[tuple[int, tuple[Question, Question]]] = []
    left: tuple[list[Question], list[Question]] = ([], [])
    for sides in groups.values():
        pairs = list(zip(*sides, strict=False))
        rounds += enumerate(pairs)
        for rest, side in zip(left, sides, strict=True):
            rest += side[len(pairs) :]
    # One pair of each local group at a time, so that no group crowds out the others.
    ordered = [pair for _, pair in sorted(rounds, key=lambda entry: entry[0])]
    ordered += zip(*left, strict=False)
    return [question for pair in ordered[: _count(quota / 2)] for question in pair]
