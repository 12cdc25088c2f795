"""Questions about existence in the scene, alone or in a relation (structural type ``verify``).

The answer is drawn before the words, so every wording is true as often as false.
"""

import random

from lavis_ext.datasets.mini_gqa.drafts import YES_NO, Draft, yes_or_no
from lavis_ext.datasets.mini_gqa.facts import (
    Facts,
    described,
    has,
    none_of,
    related,
    sufficient_for_existence,
    uniquely_described,
)
from lavis_ext.datasets.mini_gqa.scenes import Scene, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import OPPOSITE, RELATIONS, World
from lavis_ext.datasets.mini_gqa.wording import (
    Description,
    Mention,
    Program,
    describe,
    referring_expression,
)


def draw_description(
    rng: random.Random, scene: Scene, present: bool, keys: tuple[str, ...], noun_key: str
) -> Description | None:
    """Draw a description by ``keys`` and a noun, of a ``present`` or an absent object.

    Absent ones are drawn uniformly over words; None after too many failed draws.
    """
    if present:
        having = [o for o in scene.objects if all(scene.world.has(o.name, key) for key in keys)]
        return describe(rng.choice(having), keys, noun_key) if having else None
    for _ in range(20):
        description = random_description(rng, scene.world, keys, noun_key)
        if not any(description.matches(item) for item in scene.objects):
            return description
    return None


def random_description(
    rng: random.Random, world: World, keys: tuple[str, ...], noun_key: str
) -> Description:
    """Draw the words of a description by ``keys`` and a noun uniformly."""
    nouns = world.nouns(noun_key, keys)
    noun = nouns[0] if noun_key == "any" else rng.choice(nouns)
    return Description(noun, tuple(rng.choice(world.attributes[key]) for key in keys))


def matching_objects(scene: Scene, description: Description) -> list[SceneObject]:
    """The objects that ``description`` is true of."""
    return [item for item in scene.objects if description.matches(item)]


def selected_objects(scene: Scene, description: Description) -> list[SceneObject]:
    """The objects that GQA annotates at ``select``: matching ones, else all with that noun."""
    return matching_objects(scene, description) or matching_objects(
        scene, Description(description.noun)
    )


def existence_facts(scene: Scene, description: Description) -> Facts:
    """Facts that follow from whether an object matches ``description``."""
    found = matching_objects(scene, description)
    if not found:
        return none_of(description)
    return frozenset().union(*(described(item, description) for item in found))


def first_mention(scene: Scene, description: Description) -> Mention:
    """A mention of the first object that matches ``description``, or of none."""
    found = matching_objects(scene, description)
    return description.mention(found[0] if found else None)


def exist(rng: random.Random, scene: Scene, keys: tuple[str, ...], noun_key: str) -> Draft | None:
    """Ask "Is there a circle?", "Is there a red circle?"."""
    description = draw_description(rng, scene, rng.random() < 0.5, keys, noun_key)
    if description is None:
        return None
    truth = bool(matching_objects(scene, description))
    program = Program()
    program.add("exist", "?", program.select(description, selected_objects(scene, description)))
    values = "_".join((description.noun, *description.adjectives))
    return Draft(
        wordings=(
            "Is there {a0}?",
            "Is there {a0} in the picture?",
            "Do you see {a0}?",
            "Does the image show {a0}?",
        ),
        mentions=(first_mention(scene, description),),
        answer=yes_or_no(truth),
        full_answer="Yes, there is {a0}." if truth else "No, there is no {0}.",
        program=program,
        kind=("verify", "obj", "existAttr" if keys else "exist"),
        subject=noun_key,
        local=f"{'04' if keys else '03'}-{values}",
        valid=YES_NO,
        implied=existence_facts(scene, description),
        sufficient=sufficient_for_existence(scene, description),
    )


def exist_that(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is there a circle that is striped?"."""
    key = rng.choice(scene.world.asked)
    draft = exist(rng, scene, (key,), "name")
    if draft is None:
        return None
    value, noun = draft.mentions[0].words.split()
    draft.mentions += (Mention(noun, draft.mentions[0].object_id),)
    draft.wordings = (
        f"Is there {{a1}} that is {value}?",
        f"Do you see {{a1}} in the image that is {value}?",
    )
    draft.kind, draft.family = ("verify", "obj", "existThat"), f"existThat.{key}"
    return draft


def exist_not(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is there a circle that is not red?", where there is a circle."""
    item = rng.choice(scene.objects)
    noun, key = Description(item.name), rng.choice(scene.world.asked)
    same = matching_objects(scene, noun)
    actual = item.value(key)
    if actual is None:
        return None
    if rng.random() < 0.5:
        value = rng.choice([v for v in scene.world.attributes[key] if v != actual])
    else:
        value = actual
    other = [o for o in same if o.value(key) != value]
    if not other and len(same) > 1:
        return None
    program = Program()
    step = program.add("select", f"{noun.noun} ({','.join(o.id for o in other or same)})")
    program.add("exist", "?", program.add(f"filter {key}", f"not({value})", step))
    known = [described(o, noun) | has(o, key) for o in other]
    return Draft(
        wordings=(
            f"Is there {{a0}} that is not {value}?",
            f"Do you see {{a0}} that is not {value}?",
        ),
        mentions=(noun.mention((other or same)[0]),),
        answer=yes_or_no(bool(other)),
        full_answer=f"Yes, there is {{a0}} that is not {value}."
        if other
        else f"No, there is {{a0}} but it is {value}.",
        program=program,
        kind=("verify", "obj", "existAttrNot"),
        subject=key,
        local=f"04-{noun.noun}_n#{value}",
        valid=YES_NO,
        implied=frozenset().union(*(described(o, noun) for o in same))
        | (frozenset() if other else has(item, key)),
        sufficient=known or [uniquely_described(item, noun) | has(item, key)],
    )


def exist_related(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Is there a red shape above the star?"."""
    anchor = rng.choice(scene.objects)
    reference = referring_expression(rng, scene, anchor)
    relation = rng.choice(RELATIONS)
    keys, noun_key = rng.choice((((), "name"), (("color",), "any"), ((), "name")))
    wanted = rng.random() < 0.5
    others = [item for item in scene.objects if item is not anchor]
    if reference is None:
        return None
    if wanted or rng.random() < 0.7:
        description = describe(rng.choice(others), keys, noun_key)
    else:
        description = random_description(rng, scene.world, keys, noun_key)
    candidates = [item for item in others if description.matches(item)]
    states = [scene.relation(item, relation, anchor) for item in candidates]
    truth = True in states
    if truth != wanted or (not truth and None in states) or description.matches(anchor):
        return None
    found = [item for item, state in zip(candidates, states, strict=True) if state]
    program = Program()
    ids = ",".join(item.id for item in found or candidates) or "-"
    step = program.select(reference, [anchor])
    step = program.add("relate", f"{description.noun},{relation},s ({ids})", step)
    program.add("exist", "?", program.filter(step, description))
    place = described(anchor, reference)
    if found:
        sufficient = [
            described(item, description) | related(item, relation, anchor) | place for item in found
        ]
    elif len(candidates) == 1:
        only, opposite = candidates[0], OPPOSITE[relation]
        sufficient = [
            uniquely_described(only, description) | related(only, opposite, anchor) | place
        ]
    else:
        sufficient = [] if candidates else sufficient_for_existence(scene, description)
    implied = uniquely_described(anchor, reference)
    if len(found) == 1:
        implied |= described(found[0], description) | related(found[0], relation, anchor)
    return Draft(
        wordings=(
            f"Is there {{a0}} {relation} the {{1}}?",
            f"Do you see {{a0}} {relation} the {{1}}?",
        ),
        mentions=(description.mention(found[0] if found else None), reference.mention(anchor)),
        answer=yes_or_no(truth),
        full_answer=f"Yes, there is {{a0}} {relation} the {{1}}."
        if truth
        else f"No, there is no {{0}} {relation} the {{1}}.",
        program=program,
        kind=("verify", "rel", "existRelS"),
        local=f"13-{reference.noun}_{description.words}",
        valid=YES_NO,
        implied=implied,
        sufficient=sufficient,
    )
