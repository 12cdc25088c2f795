"""Yes/no questions about known objects and the scene (structural type ``verify``).

The answer is drawn before the words, so every wording is true as often as false.
"""

import random

from lavis_ext.datasets.mini_gqa.drafts import YES_NO, Draft, yes_or_no
from lavis_ext.datasets.mini_gqa.facts import (
    described,
    has,
    is_not,
    related,
    scene_is_not,
    scene_known,
    touching,
    uniquely_described,
)
from lavis_ext.datasets.mini_gqa.query_questions import place_phrase
from lavis_ext.datasets.mini_gqa.scenes import Scene
from lavis_ext.datasets.mini_gqa.vocabulary import (
    OPPOSITE,
    POSITION_VALUES,
    RELATIONS,
    SCENE_VALUES,
    TOUCHING,
    article,
    short,
)
from lavis_ext.datasets.mini_gqa.wording import Program, referring_expression


def verify_attribute(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Is the circle red?"."""
    item = rng.choice(scene.objects)
    reference = referring_expression(rng, scene, item, avoid=(key,))
    actual = item.value(key)
    if reference is None or actual is None:
        return None
    truth = rng.random() < 0.5
    value = actual
    if not truth:
        value = rng.choice([v for v in scene.world.attributes[key] if v != actual])
    program = Program()
    program.add(f"verify {key}", value, program.select(reference, [item]))
    place = described(item, reference)
    return Draft(
        wordings=_worded_value(key, value),
        mentions=(reference.mention(item),),
        answer=yes_or_no(truth),
        full_answer=f"Yes, the {{0}} is {value}." if truth else f"No, the {{0}} is {actual}.",
        program=program,
        kind=("verify", "attr", "verifyAttr"),
        subject=key,
        local=f"06-{reference.noun}_{value}",
        valid=YES_NO,
        implied=uniquely_described(item, reference)
        | (has(item, key) if truth else is_not(item, value)),
        sufficient=[place | has(item, key)] + ([] if truth else [place | is_not(item, value)]),
    )


def _worded_value(key: str, value: str) -> tuple[str, ...]:
    """Templates that ask whether an object is ``value``, of the attribute type ``key``."""
    if key in ("teeth", "holes"):
        return (f"Is the {{0}} {value}?", f"Does the {{0}} have {short(value)} {key}?")
    if key == "notch":
        return (f"Is the {{0}} {value}?", f"Does the {{0}} have a notch on the {short(value)}?")
    if key == "letter":
        return (
            f"Is the {{0}} {value}?",
            f"Is the letter on the {{0}} {article(value)} {short(value)}?",
        )
    return (f"Is the {{0}} {value}?", f"Does the {{0}} look {value}?")


def verify_position(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Is the circle on the left side of the picture?"."""
    item = rng.choice(scene.objects)
    actual = scene.position(item, key)
    reference = referring_expression(rng, scene, item)
    if actual is None or reference is None:
        return None
    value = rng.choice(POSITION_VALUES[key])
    answer = yes_or_no(value == actual)
    program = Program()
    program.add(f"verify {key}", value, program.select(reference, [item]))
    return Draft(
        wordings=(f"Is the {{0}} at the {value} of the picture?", f"Is the {{0}} at the {value}?"),
        mentions=(reference.mention(item),),
        answer=answer,
        full_answer=f"{answer.title()}, the {{0}} is at the {actual} of the picture.",
        program=program,
        kind=("verify", "attr", "positionVerify"),
        subject=key,
        local=f"06-{reference.noun}_{value}",
        valid=YES_NO,
        # There are two positions, so "no" implies the other.
        implied=uniquely_described(item, reference) | has(item, key),
        sufficient=[described(item, reference) | has(item, key)],
    )


def verify_relation(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is the circle to the left of the star?"."""
    item, anchor = rng.sample(scene.objects, 2)
    relation = rng.choice(RELATIONS)
    truth = bool(scene.relation(item, relation, anchor))
    actual = relation if truth else OPPOSITE[relation]
    subject, reference = (
        referring_expression(rng, scene, item),
        referring_expression(rng, scene, anchor),
    )
    if subject is None or reference is None or not scene.relation(item, actual, anchor):
        return None
    program = Program()
    step = program.select(reference, [anchor])
    program.add("verify rel", f"{subject.noun},{relation},s ({item.id})", step)
    place = described(item, subject) | described(anchor, reference)
    return Draft(
        wordings=(f"Is the {{0}} {relation} the {{1}}?",),
        mentions=(subject.mention(item), reference.mention(anchor)),
        answer=yes_or_no(truth),
        full_answer=f"{yes_or_no(truth).title()}, the {{0}} is {actual} the {{1}}.",
        program=program,
        kind=("verify", "rel", "relVerify"),
        local=f"13-{reference.noun}_{subject.noun}",
        valid=YES_NO,
        implied=uniquely_described(item, subject)
        | uniquely_described(anchor, reference)
        | (related(item, relation, anchor) if truth else frozenset()),
        sufficient=[place | related(item, actual, anchor)],
    )


def verify_touching(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is the coin touching the gear?", mostly about objects that are side by side."""
    truth = rng.random() < 0.5
    pairs = [
        (a, b)
        for a in scene.objects
        for b in scene.objects
        if scene.neighbors.get(frozenset((a.id, b.id))) is truth
    ]
    if not pairs and truth:
        return None
    item, anchor = rng.choice(pairs) if pairs else rng.sample(scene.objects, 2)
    subject, reference = (
        referring_expression(rng, scene, item),
        referring_expression(rng, scene, anchor),
    )
    if subject is None or reference is None or scene.relation(item, TOUCHING, anchor) != truth:
        return None
    program = Program()
    step = program.select(reference, [anchor])
    program.add("verify rel", f"{subject.noun},{TOUCHING},s ({item.id})", step)
    known = described(item, subject) | described(anchor, reference) | touching(item, anchor)
    return Draft(
        wordings=("Is the {0} touching the {1}?", "Does the {0} touch the {1}?"),
        mentions=(subject.mention(item), reference.mention(anchor)),
        answer=yes_or_no(truth),
        full_answer="Yes, the {0} is touching the {1}."
        if truth
        else "No, the {0} is not touching the {1}.",
        program=program,
        kind=("verify", "rel", "relVerify"),
        subject=TOUCHING,
        local=f"13t-{reference.noun}_{subject.noun}",
        valid=YES_NO,
        implied=known | uniquely_described(item, subject) | uniquely_described(anchor, reference),
        sufficient=[known],
    )


def verify_scene(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Is this at the beach?", "Is it rainy?"."""
    actual = scene.place if key == "place" else scene.weather
    truth = rng.random() < 0.5
    value = actual if truth else rng.choice([v for v in SCENE_VALUES[key] if v != actual])
    program = Program()
    program.add(f"verify {key}", value, program.add("select", "scene"))
    phrase = place_phrase(value) if key == "place" else value
    actual_phrase = place_phrase(actual) if key == "place" else actual
    wordings = (
        (f"Is this scene {phrase}?", f"Was this picture made {phrase}?")
        if key == "place"
        else (f"Is it {phrase}?", f"Is the weather {phrase} in this picture?")
    )
    return Draft(
        wordings=wordings,
        mentions=(),
        answer=yes_or_no(truth),
        full_answer=f"{yes_or_no(truth).title()}, it is {actual_phrase}.",
        program=program,
        kind=("verify", "global", f"{key}Verify"),
        local=f"02v-{key}_{value}",
        valid=YES_NO,
        implied=scene_known(key) if truth else scene_is_not(key, value),
        sufficient=[scene_known(key)] + ([] if truth else [scene_is_not(key, value)]),
    )
