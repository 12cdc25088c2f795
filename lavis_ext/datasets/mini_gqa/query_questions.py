"""Open questions: attributes, positions, names, and the scene (structural type ``query``)."""

import random

from lavis_ext.datasets.mini_gqa.drafts import Draft
from lavis_ext.datasets.mini_gqa.facts import (
    described,
    has,
    related,
    scene_known,
    uniquely_described,
)
from lavis_ext.datasets.mini_gqa.scenes import Scene, SceneObject
from lavis_ext.datasets.mini_gqa.vocabulary import (
    POSITION_VALUES,
    RELATIONS,
    SCENE_VALUES,
    World,
    article,
    short,
)
from lavis_ext.datasets.mini_gqa.wording import (
    Description,
    Mention,
    Program,
    describe,
    referring_expression,
)

ATTRIBUTE_WORDINGS = {
    ("directWhich", "color"): ("What color is the {0}?", "Which color does the {0} have?"),
    ("directOf", "color"): ("What is the color of the {0}?", "The {0} is of what color?"),
    ("directWhich", "pattern"): ("What pattern does the {0} have?", "Which pattern is on the {0}?"),
    ("directOf", "pattern"): ("What is the pattern of the {0}?", "The {0} has what pattern?"),
    ("directWhich", "size"): ("What size is the {0}?", "Which size does the {0} have?"),
    ("directOf", "size"): ("What is the size of the {0}?", "The {0} is of what size?"),
    ("directWhich", "outline"): ("Which outline does the {0} have?", "How is the {0} outlined?"),
    ("directOf", "outline"): ("What is the outline of the {0} like?", "The {0} has what outline?"),
    ("directWhich", "teeth"): ("How many teeth does the {0} have?", "How many teeth has the {0}?"),
    ("directOf", "teeth"): (
        "What is the number of teeth of the {0}?",
        "The {0} has how many teeth?",
    ),
    ("directWhich", "holes"): ("How many holes does the {0} have?", "How many holes has the {0}?"),
    ("directOf", "holes"): (
        "What is the number of holes in the {0}?",
        "The {0} has how many holes?",
    ),
    ("directWhich", "letter"): ("Which letter is on the {0}?", "What letter does the {0} have?"),
    ("directOf", "letter"): ("What is the letter on the {0}?", "The {0} has what letter?"),
    ("directWhich", "notch"): (
        "Which side of the {0} has a notch?",
        "On which side is the {0} notched?",
    ),
    ("directOf", "notch"): (
        "What is the side of the notch of the {0}?",
        "The {0} has a notch on what side?",
    ),
}
POSITION_WORDINGS = {
    "hposition": ("On which side of the picture is the {0}?", "Which side is the {0} on?"),
    "vposition": (
        "In which part of the picture is the {0}, the top or the bottom?",
        "Which edge is the {0} closer to, the top or the bottom?",
    ),
}
SCENE_WORDINGS = {
    "place": ("Which place is it?", "Where was this picture made?", "What place is shown?"),
    "weather": ("How is the weather?", "What is the weather like in this picture?"),
}


def place_phrase(place: str) -> str:
    """A place with its preposition: "at the beach", "in a forest"."""
    return {"beach": "at the beach", "sea": "at sea", "street": "on a street"}.get(
        place, f"in {article(place)} {place}"
    )


def attribute(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "What color is the circle?"."""
    item = rng.choice(scene.objects)
    reference = referring_expression(rng, scene, item, avoid=(key,))
    value = item.value(key)
    if reference is None or value is None:
        return None
    detailed = rng.choice(("directWhich", "directOf"))
    program = Program()
    program.add("query", key, program.select(reference, [item]))
    known = has(item, key)
    return Draft(
        wordings=ATTRIBUTE_WORDINGS[detailed, key],
        mentions=(reference.mention(item),),
        answer=short(value),
        full_answer=f"The {{0}} is {value}.",
        program=program,
        kind=("query", "attr", detailed),
        subject=key,
        group=key,
        local=f"10q-{reference.noun}_{key}",
        valid=tuple(map(short, scene.world.attributes[key])),
        implied=uniquely_described(item, reference) | known,
        sufficient=[described(item, reference) | known],
    )


def related_attribute(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "What color is the circle to the left of the large square?"."""
    found = draw_related_pair(rng, scene, rng.choice(("name", "category", "any")))
    if found is None:
        return None
    item, relation, anchor, reference, noun = found
    value = item.value(key)
    if value is None:
        return None
    program = Program()
    step = program.add(
        "relate", f"{noun.noun},{relation},s ({item.id})", program.select(reference, [anchor])
    )
    program.add("query", key, step)
    known = (
        described(item, noun)
        | has(item, key)
        | related(item, relation, anchor)
        | described(anchor, reference)
    )
    return Draft(
        wordings=tuple(
            wording.replace("{0}", f"{{0}} {relation} the {{1}}")
            for wording in ATTRIBUTE_WORDINGS["directWhich", key]
        ),
        mentions=(noun.mention(item), reference.mention(anchor)),
        answer=short(value),
        full_answer=f"The {{0}} is {value}.",
        program=program,
        kind=("query", "attr", "directWhich"),
        subject=f"{key} related",
        group=key,
        local=f"10q-{noun.noun}_{key}",
        valid=tuple(map(short, scene.world.attributes[key])),
        implied=known | uniquely_described(anchor, reference),
        sufficient=[known],
    )


def position(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "On which side of the picture is the circle?"."""
    item = rng.choice(scene.objects)
    value = scene.position(item, key)
    reference = referring_expression(rng, scene, item)
    if value is None or reference is None:
        return None
    program = Program()
    program.add("query", key, program.select(reference, [item]))
    return Draft(
        wordings=POSITION_WORDINGS[key],
        mentions=(reference.mention(item),),
        answer=value,
        full_answer=f"The {{0}} is at the {value} of the picture.",
        program=program,
        kind=("query", "attr", "positionQuery"),
        subject=key,
        local=f"10q-{reference.noun}_{key}",
        valid=POSITION_VALUES[key],
        implied=uniquely_described(item, reference) | has(item, key),
        sufficient=[described(item, reference) | has(item, key)],
    )


def name_by_attribute(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "What is the red shape called?", "What is the striped angular shape?"."""
    item = rng.choice(scene.objects)
    reference = referring_expression(rng, scene, item, avoid=("name",))
    if reference is None or not reference.adjectives:
        return None
    return _name_draft(
        scene.world,
        item,
        reference,
        ("What is the {0}?", "What is the {0} called?", "What is the name of the {0}?"),
        "categoryAttr",
        f"11q-{reference.noun}",
    )


def name_that(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Which curved shape is red?"."""
    item = rng.choice(scene.objects)
    # Other parts than the name's would give it away.
    key = rng.choice([key for key in scene.world.asked if key not in scene.world.parts])
    reference = describe(item, [key], "category")
    if sum(reference.matches(other) for other in scene.objects) != 1:
        return None
    value = item.value(key)
    return _name_draft(
        scene.world,
        item,
        reference,
        (f"Which {{1}} is {value}?", f"What kind of {{1}} is {value}?"),
        "categoryThat",
        f"11q-{reference.noun}",
    )


def name_in_category(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Which kind of curved shape is there?"."""
    item = rng.choice(scene.objects)
    reference = describe(item, [], "category")
    if sum(reference.matches(other) for other in scene.objects) != 1:
        return None
    return _name_draft(
        scene.world,
        item,
        reference,
        ("Which kind of {0} is there?", "What kind of {0} is in the picture?"),
        "category",
        f"11q-{reference.noun}",
    )


def _name_draft(
    world: World,
    item: SceneObject,
    reference: Description,
    wordings: tuple[str, ...],
    detailed: str,
    local: str,
) -> Draft:
    program = Program()
    program.add("query", "name", program.select(reference, [item]))
    known = described(item, reference) | has(item, "name")
    return Draft(
        wordings=wordings,
        mentions=(
            reference.mention(item),
            Mention(reference.noun, item.id),
            Mention(item.name, item.id),
        ),
        answer=item.name,
        full_answer="The {0} is {a2}.",
        program=program,
        kind=("query", "cat", detailed),
        subject=reference.noun,
        group=reference.noun,
        local=local,
        valid=world.names,
        plausible=world.kinds_of(reference.noun),
        implied=known | uniquely_described(item, reference),
        sufficient=[known],
        answer_id=item.id,
    )


def name_by_relation(rng: random.Random, scene: Scene, noun_key: str) -> Draft | None:
    """Ask "What is above the star?" (``any``), "What is the curved shape above the star?"."""
    found = draw_related_pair(rng, scene, noun_key)
    if found is None:
        return None
    item, relation, anchor, reference, noun = found
    program = Program()
    asked = "_" if noun_key == "any" else noun.noun
    step = program.add(
        "relate", f"{asked},{relation},s ({item.id})", program.select(reference, [anchor])
    )
    program.add("query", "name", step)
    known = (
        described(item, noun)
        | has(item, "name")
        | related(item, relation, anchor)
        | described(anchor, reference)
    )
    wordings = (
        (f"What is {relation} the {{1}}?", f"Which shape is {relation} the {{1}}?")
        if noun_key == "any"
        else (f"What is the {{0}} {relation} the {{1}}?", f"Which {{0}} is {relation} the {{1}}?")
    )
    return Draft(
        wordings=wordings,
        mentions=(
            noun.mention(item),
            reference.mention(anchor),
            Mention(item.name, item.id),
        ),
        answer=item.name,
        full_answer=f"The {{2}} is {relation} the {{1}}.",
        program=program,
        kind=("query", "rel", "relS" if noun_key == "any" else "categoryRelS"),
        subject=noun.noun,
        group=noun.noun,
        local=f"{14 if noun_key == 'any' else 15}-{reference.noun}_{relation},s",
        valid=scene.world.names,
        plausible=scene.world.kinds_of(noun.noun),
        implied=known | uniquely_described(anchor, reference),
        sufficient=[known],
        answer_id=item.id,
    )


def scene_property(rng: random.Random, scene: Scene, key: str) -> Draft | None:
    """Ask "Which place is it?", "How is the weather?"."""
    value = scene.place if key == "place" else scene.weather
    program = Program()
    program.add("query", key, program.add("select", "scene"))
    return Draft(
        wordings=SCENE_WORDINGS[key],
        mentions=(),
        answer=value,
        full_answer=(
            f"The scene is {place_phrase(value)}." if key == "place" else f"It is {value}."
        ),
        program=program,
        kind=("query", "global", key),
        group=key,
        local=f"02q-{key}",
        valid=SCENE_VALUES[key],
        implied=scene_known(key),
        sufficient=[scene_known(key)],
    )


def draw_related_pair(
    rng: random.Random, scene: Scene, noun_key: str
) -> tuple[SceneObject, str, SceneObject, Description, Description] | None:
    """Draw an object and its relation to an anchor that no other object of its noun has.

    Returns:
        (object, relation, anchor, the anchor's referring expression, the object's noun), or None if
        the draw isn't unique.
    """
    item, anchor = rng.sample(scene.objects, 2)
    relation = rng.choice(RELATIONS)
    noun = describe(item, (), noun_key)
    reference = referring_expression(rng, scene, anchor)
    others = [o for o in scene.objects if o not in (item, anchor) and noun.matches(o)]
    if (
        reference is None
        or not scene.relation(item, relation, anchor)
        or any(scene.relation(other, relation, anchor) is not False for other in others)
    ):
        return None
    return item, relation, anchor, reference, noun
