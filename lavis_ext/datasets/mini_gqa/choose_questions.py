"""Questions that offer two answers (structural type ``choose``).

The wrong option and the order of the two are drawn uniformly.
"""

import random

from lavis_ext.datasets.mini_gqa.drafts import Draft
from lavis_ext.datasets.mini_gqa.facts import (
    described,
    has,
    related,
    scene_known,
    uniquely_described,
)
from lavis_ext.datasets.mini_gqa.query_questions import place_phrase
from lavis_ext.datasets.mini_gqa.scenes import Scene
from lavis_ext.datasets.mini_gqa.vocabulary import (
    OPPOSITE,
    POSITION_VALUES,
    RELATIONS,
    SCENE_VALUES,
    article,
    short,
)
from lavis_ext.datasets.mini_gqa.wording import Mention, Program, referring_expression


def two_options(
    rng: random.Random, answer: str, values: tuple[str, ...]
) -> tuple[tuple[str, str], int]:
    """``answer`` and another of ``values`` in random order, and the answer's index."""
    wrong = rng.choice([value for value in values if value != answer])
    place = rng.randrange(2)
    return ((answer, wrong) if place == 0 else (wrong, answer)), place


def attribute(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Is the circle red or blue?"."""
    item = rng.choice(scene.objects)
    reference = referring_expression(rng, scene, item, avoid=(key,))
    value = item.value(key)
    if reference is None or value is None:
        return None
    answers = tuple(map(short, scene.world.attributes[key]))
    options, place = two_options(rng, short(value), answers)
    program = Program()
    program.add(f"choose {key}", "|".join(options), program.select(reference, [item]))
    return Draft(
        wordings=_worded_options(key, options),
        mentions=(reference.mention(item),),
        answer=short(value),
        full_answer=f"The {{0}} is {value}.",
        program=program,
        kind=("choose", "attr", "chooseAttr"),
        subject=key,
        group=key,
        local=f"10c-{reference.noun}_{key}",
        valid=options,
        implied=uniquely_described(item, reference) | has(item, key),
        sufficient=[described(item, reference) | has(item, key)],
        option=place,
    )


def _worded_options(key: str, options: tuple[str, str]) -> tuple[str, ...]:
    """Templates that offer two answers to a question for the attribute type ``key``."""
    offered = f"{options[0]} or {options[1]}"
    if key in ("teeth", "holes"):
        return (
            f"Does the {{0}} have {offered} {key}?",
            f"How many {key} has the {{0}}, {offered}?",
        )
    if key == "notch":
        return (f"Is the notch of the {{0}} on the {options[0]} or on the {options[1]}?",)
    if key == "letter":
        return (f"Is the letter on the {{0}} {offered}?", f"Which letter has the {{0}}, {offered}?")
    if key == "outline":
        return (f"Is the outline of the {{0}} {offered}?",)
    return (f"Is the {{0}} {offered}?", f"Which {key} is the {{0}}, {offered}?")


def position(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Is the circle at the left or at the right of the picture?"."""
    item = rng.choice(scene.objects)
    actual = scene.position(item, key)
    reference = referring_expression(rng, scene, item)
    if actual is None or reference is None:
        return None
    options, place = two_options(rng, actual, POSITION_VALUES[key])
    program = Program()
    program.add(f"choose {key}", "|".join(options), program.select(reference, [item]))
    return Draft(
        wordings=(
            f"Is the {{0}} at the {options[0]} or at the {options[1]} of the picture?",
            f"Is the {{0}} on the {options[0]} or on the {options[1]} side?",
        ),
        mentions=(reference.mention(item),),
        answer=actual,
        full_answer=f"The {{0}} is at the {actual} of the picture.",
        program=program,
        kind=("choose", "attr", "positionChoose"),
        subject=key,
        local=f"10c-{reference.noun}_{key}",
        valid=options,
        implied=uniquely_described(item, reference) | has(item, key),
        sufficient=[described(item, reference) | has(item, key)],
        option=place,
    )


def name(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is the red shape a circle or a star?"."""
    item = rng.choice(scene.objects)
    reference = referring_expression(rng, scene, item, avoid=("name",))
    if reference is None or not reference.adjectives:
        return None
    options, place = two_options(rng, item.name, scene.world.kinds_of(reference.noun))
    program = Program()
    program.add("choose name", "|".join(options), program.select(reference, [item]))
    known = described(item, reference) | has(item, "name")
    return Draft(
        wordings=(
            "Is the {0} {a1} or {a2}?",
            "What is the {0}, {a1} or {a2}?",
        ),
        mentions=(
            reference.mention(item),
            *(Mention(option, item.id if option == item.name else None) for option in options),
        ),
        answer=item.name,
        full_answer=f"The {{0}} is {{a{place + 1}}}.",
        program=program,
        kind=("choose", "cat", "categoryThisChoose"),
        group=reference.noun,
        local=f"11c-{reference.noun}",
        valid=options,
        implied=known | uniquely_described(item, reference),
        sufficient=[known],
        option=place,
        answer_id=item.id,
    )


def relation(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is the circle to the left or to the right of the star?"; answers left, right, ..."""
    item, anchor = rng.sample(scene.objects, 2)
    actual = rng.choice(RELATIONS)
    subject, reference = (
        referring_expression(rng, scene, item),
        referring_expression(rng, scene, anchor),
    )
    if subject is None or reference is None or not scene.relation(item, actual, anchor):
        return None
    options, place = two_options(rng, actual, (actual, OPPOSITE[actual]))
    # GQA answers "left" where the relation is "to the left of".
    short = {"to the left of": "left", "to the right of": "right"}
    answers = tuple(short.get(option, option) for option in options)
    program = Program()
    step = program.select(reference, [anchor])
    program.add("choose rel", f"{subject.noun},{'|'.join(options)},s ({item.id})", step)
    known = described(item, subject) | described(anchor, reference) | related(item, actual, anchor)
    return Draft(
        wordings=(f"Is the {{0}} {options[0].removesuffix(' of')} or {options[1]} the {{1}}?",),
        mentions=(subject.mention(item), reference.mention(anchor)),
        answer=answers[place],
        full_answer=f"The {{0}} is {actual} the {{1}}.",
        program=program,
        kind=("choose", "rel", "relChooser"),
        subject="horizontal" if actual in short else "vertical",
        local=f"13-{reference.noun}_{subject.noun}",
        valid=answers,
        implied=known | uniquely_described(item, subject) | uniquely_described(anchor, reference),
        sufficient=[known],
        option=place,
    )


def scene_property(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Is it a beach or a street?", "Is it rainy or sunny?"."""
    actual = scene.place if key == "place" else scene.weather
    options, place = two_options(rng, actual, SCENE_VALUES[key])
    program = Program()
    program.add(f"choose {key}", "|".join(options), program.add("select", "scene"))
    if key == "place":
        first, second = (f"{article(option)} {option}" for option in options)
        wordings = (f"Is this place {first} or {second}?", f"Which is it, {first} or {second}?")
    else:
        wordings = (
            f"Is it {options[0]} or {options[1]}?",
            f"Is the weather {options[0]} or {options[1]}?",
        )
    return Draft(
        wordings=wordings,
        mentions=(),
        answer=actual,
        full_answer=f"It is {place_phrase(actual) if key == 'place' else actual}.",
        program=program,
        kind=("choose", "global", f"{key}Choose"),
        group=key,
        local=f"02c-{key}",
        valid=options,
        implied=scene_known(key),
        sufficient=[scene_known(key)],
        option=place,
    )
