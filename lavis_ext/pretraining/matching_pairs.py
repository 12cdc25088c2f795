"""Pairs of a matching and a mismatched text about an image."""

import random
import re
from collections.abc import Sequence

from lavis_ext.datasets.gqa.grounded_questions import GroundedQuestion
from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph
from lavis_ext.datasets.mini_gqa.vocabulary import ANY_SHAPE, World, article
from lavis_ext.pretraining.descriptions import Fact, Mention

STATEMENTS = 0.4
"""Share of pairs of statements ("a red circle"); the others are questions."""


def matching_pair(
    graph: SceneGraph, questions: Sequence[GroundedQuestion], rng: random.Random, world: World
) -> tuple[str, str]:
    """Draw a text that matches the scene, and the same text with a mention of an absent object."""
    asked = [question for question in questions if question.spans]
    while True:
        if asked and rng.random() > STATEMENTS:
            question = rng.choice(asked)
            span = rng.choice(question.spans)
            pair = _swapped_question(question.text, span, graph, rng, world)
        else:
            pair = mention_pair(graph, rng.choice(graph.objects), rng, world)
        if pair is not None:
            return pair


def mention_pair(
    graph: SceneGraph, item: GraphObject, rng: random.Random, world: World
) -> tuple[str, str] | None:
    """Draw a true mention of ``item`` and a mention of an absent object, with articles.

    None if ``Mention.swapped`` finds no absent object.
    """
    mention = Mention.draw(item, rng)
    false = mention.swapped(graph, rng, world)
    return (_statement(mention), _statement(false)) if false else None


def fact_pair(
    graph: SceneGraph, item: GraphObject, rng: random.Random, world: World
) -> tuple[str, str] | None:
    """Draw a true sentence about ``item``, and the same with another value, true of no object.

    None if ``Fact.swapped`` finds no such value.
    """
    fact = Fact.draw(item, rng)
    false = fact.swapped(graph, rng, world)
    return (fact.words, false.words) if false else None


def _statement(mention: Mention) -> str:
    return f"{article(mention.words)} {mention.words}"


def _swapped_question(
    text: str, span: tuple[int, int], graph: SceneGraph, rng: random.Random, world: World
) -> tuple[str, str] | None:
    words = text.split()
    first, end = span
    mentioned = re.fullmatch(r"(.*?)(\W*)", " ".join(words[first:end]))
    assert mentioned is not None
    if mentioned[1] == ANY_SHAPE:  # "shape" alone, as in "Which shape is red?", is never false
        return None
    false = Mention.parse(mentioned[1]).swapped(graph, rng, world)
    if false is None:
        return None
    before = words[:first]
    if before and before[-1] in ("a", "an"):
        before[-1] = article(false.words)
    return text, " ".join([*before, false.words + mentioned[2], *words[end:]])
