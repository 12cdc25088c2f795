"""Question templates of each world."""

from functools import partial

from lavis_ext.datasets.mini_gqa import (
    choose_questions,
    existence_questions,
    logic_questions,
    query_questions,
    verify_questions,
)
from lavis_ext.datasets.mini_gqa.drafts import TemplateFunction
from lavis_ext.datasets.mini_gqa.vocabulary import FINE, SHAPES

_DRAWS: tuple[tuple[TemplateFunction, int, int], ...] = (
    (partial(query_questions.attribute, key="color"), 3, 2),
    (partial(query_questions.attribute, key="pattern"), 2, 0),
    (partial(query_questions.attribute, key="size"), 1, 1),
    (partial(query_questions.attribute, key="outline"), 0, 2),
    (partial(query_questions.attribute, key="teeth"), 0, 4),
    (partial(query_questions.attribute, key="holes"), 0, 4),
    (partial(query_questions.attribute, key="letter"), 0, 4),
    (partial(query_questions.attribute, key="notch"), 0, 4),
    (partial(query_questions.related_attribute, key="color"), 2, 2),
    (partial(query_questions.related_attribute, key="pattern"), 1, 0),
    (partial(query_questions.related_attribute, key="letter"), 0, 4),
    (partial(query_questions.position, key="hposition"), 1, 1),
    (partial(query_questions.position, key="vposition"), 1, 1),
    (query_questions.name_by_attribute, 3, 3),
    (query_questions.name_that, 2, 2),
    (query_questions.name_in_category, 1, 1),
    (partial(query_questions.name_by_relation, noun_key="any"), 5, 4),
    (partial(query_questions.name_by_relation, noun_key="category"), 3, 3),
    (partial(query_questions.scene_property, key="place"), 1, 1),
    (partial(query_questions.scene_property, key="weather"), 1, 1),
    (partial(existence_questions.exist, keys=(), noun_key="name"), 2, 2),
    (partial(existence_questions.exist, keys=("color",), noun_key="name"), 2, 2),
    (partial(existence_questions.exist, keys=("color",), noun_key="any"), 1, 1),
    (partial(existence_questions.exist, keys=("color",), noun_key="category"), 1, 1),
    (partial(existence_questions.exist, keys=("pattern",), noun_key="name"), 1, 0),
    (partial(existence_questions.exist, keys=("outline",), noun_key="name"), 0, 1),
    (partial(existence_questions.exist, keys=("teeth",), noun_key="name"), 0, 1),
    (partial(existence_questions.exist, keys=("holes",), noun_key="name"), 0, 1),
    (partial(existence_questions.exist, keys=("letter",), noun_key="name"), 0, 1),
    (partial(existence_questions.exist, keys=("notch",), noun_key="name"), 0, 1),
    (existence_questions.exist_that, 1, 2),
    (existence_questions.exist_not, 1, 2),
    (existence_questions.exist_related, 3, 3),
    (partial(verify_questions.verify_attribute, key="color"), 1, 1),
    (partial(verify_questions.verify_attribute, key="pattern"), 1, 0),
    (partial(verify_questions.verify_attribute, key="size"), 1, 1),
    (partial(verify_questions.verify_attribute, key="outline"), 0, 1),
    (partial(verify_questions.verify_attribute, key="teeth"), 0, 2),
    (partial(verify_questions.verify_attribute, key="holes"), 0, 2),
    (partial(verify_questions.verify_attribute, key="letter"), 0, 2),
    (partial(verify_questions.verify_attribute, key="notch"), 0, 2),
    (partial(verify_questions.verify_position, key="hposition"), 1, 1),
    (partial(verify_questions.verify_position, key="vposition"), 1, 1),
    (verify_questions.verify_relation, 2, 2),
    (verify_questions.verify_touching, 0, 2),
    (partial(verify_questions.verify_scene, key="place"), 1, 1),
    (partial(verify_questions.verify_scene, key="weather"), 1, 1),
    (partial(logic_questions.exist_both, operation="or", keys=()), 1, 1),
    (partial(logic_questions.exist_both, operation="and", keys=()), 1, 1),
    (partial(logic_questions.exist_both, operation="or", keys=("color",)), 1, 1),
    (partial(logic_questions.exist_both, operation="and", keys=("color",)), 1, 1),
    (logic_questions.verify_both, 1, 2),
    (partial(logic_questions.compare, operation="same"), 2, 2),
    (partial(logic_questions.compare, operation="different"), 2, 2),
    (partial(choose_questions.attribute, key="color"), 1, 1),
    (partial(choose_questions.attribute, key="pattern"), 1, 0),
    (partial(choose_questions.attribute, key="size"), 1, 1),
    (partial(choose_questions.attribute, key="outline"), 0, 1),
    (partial(choose_questions.attribute, key="teeth"), 0, 2),
    (partial(choose_questions.attribute, key="holes"), 0, 2),
    (partial(choose_questions.attribute, key="letter"), 0, 2),
    (partial(choose_questions.attribute, key="notch"), 0, 2),
    (partial(choose_questions.position, key="hposition"), 1, 1),
    (partial(choose_questions.position, key="vposition"), 1, 1),
    (choose_questions.relation, 2, 2),
    (choose_questions.name, 1, 1),
    (partial(choose_questions.scene_property, key="place"), 1, 1),
    (partial(choose_questions.scene_property, key="weather"), 1, 1),
)
"""Draws of each template for a scene of shapes, and for one of fine parts."""

TEMPLATES: dict[str, list[tuple[TemplateFunction, int]]] = {
    world.name: [(template, draws[place]) for template, *draws in _DRAWS if draws[place]]
    for place, world in enumerate((SHAPES, FINE))
}
"""Number of draws of each template for a scene, by world.

About one draw in five doesn't suit a scene; of those for parts that some objects have, two thirds.
"""
