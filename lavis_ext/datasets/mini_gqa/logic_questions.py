"""Questions that combine two facts: ``logical`` (or, and) and ``compare`` (same, different)."""

import random

from lavis_ext.datasets.mini_gqa.drafts import YES_NO, Draft, yes_or_no
from lavis_ext.datasets.mini_gqa.existence_questions import (
    draw_description,
    existence_facts,
    first_mention,
    matching_objects,
    selected_objects,
)
from lavis_ext.datasets.mini_gqa.facts import (
    Facts,
    compared,
    described,
    has,
    is_not,
    sufficient_for_existence,
    uniquely_described,
)
from lavis_ext.datasets.mini_gqa.scenes import Scene
from lavis_ext.datasets.mini_gqa.wording import Program, referring_expression


def exist_both(
    rng: random.Random, scene: Scene, operation: str, keys: tuple[str, ...]
) -> Draft | None:
    """Ask "Is there a circle or a star?" (``or``), "Are there a circle and a star?" (``and``)."""
    wanted = rng.random() < 0.5
    if (operation == "or") == wanted:
        # In half of these both parts are true (``or``) or false (``and``), in half only one is.
        parts = rng.choice(((True, False), (False, True), (wanted, wanted), (wanted, wanted)))
    else:
        parts = (wanted, wanted)
    pair = [draw_description(rng, scene, part, keys, "name") for part in parts]
    first, second = pair
    # A word in both would be more frequent among absent objects.
    if first is None or second is None or first.values & second.values:
        return None
    found = [matching_objects(scene, description) for description in (first, second)]
    program = Program()
    steps = [
        program.add("exist", "?", program.select(description, selected_objects(scene, description)))
        for description in (first, second)
    ]
    program.add(operation, "", *steps)
    sufficient_for = [
        sufficient_for_existence(scene, description) for description in (first, second)
    ]
    both_facts = existence_facts(scene, first) | existence_facts(scene, second)
    implied: Facts
    if operation == "or":
        truth = any(found)
        implied = frozenset() if truth else both_facts
        decisive = [
            facts for one, sets in zip(found, sufficient_for, strict=True) if one for facts in sets
        ]
        wordings: tuple[str, ...] = (
            "Is there {a0} or {a1}?",
            "Is there either {a0} or {a1} in the picture?",
            "Do you see {a0} or {a1}?",
        )
        present = 0 if found[0] else 1
        full = f"Yes, there is {{a{present}}}." if truth else "No, there is no {0} and no {1}."
    else:
        truth = all(found)
        implied = both_facts if truth else frozenset()
        decisive = [
            facts
            for one, sets in zip(found, sufficient_for, strict=True)
            if not one
            for facts in sets
        ]
        wordings = (
            "Are there both {a0} and {a1}?",
            "Are there {a0} and {a1} in the picture?",
            "Do you see both {a0} and {a1}?",
        )
        absent = 1 if found[0] else 0
        full = "Yes, there are {a0} and {a1}." if truth else f"No, there is no {{{absent}}}."
    both = [a | b for a in sufficient_for[0] for b in sufficient_for[1]]
    detailed = f"exist{'Attr' if keys else ''}{operation.title()}"
    nouns = "_".join(sorted((first.words, second.words)))
    return Draft(
        wordings=wordings,
        mentions=(first_mention(scene, first), first_mention(scene, second)),
        answer=yes_or_no(truth),
        full_answer=full,
        program=program,
        kind=("logical", "obj", detailed),
        local=f"09{detailed}-{nouns}",
        valid=YES_NO,
        implied=implied,
        sufficient=decisive or both,
    )


def verify_both(rng: random.Random, scene: Scene) -> Draft | None:
    """Ask "Are the circle and the star both red?"."""
    key = rng.choice(scene.world.asked)
    items = rng.sample(scene.objects, 2)
    references = [referring_expression(rng, scene, item, avoid=(key,)) for item in items]
    first, second = references
    values = [value for item in items if (value := item.value(key))]
    if first is None or second is None or len(values) < 2:
        return None
    value = values[0] if rng.random() < 0.5 else rng.choice(scene.world.attributes[key])
    states = [each == value for each in values]
    program = Program()
    steps = [
        program.add(f"verify {key}", value, program.select(reference, [item]))
        for reference, item in ((first, items[0]), (second, items[1]))
    ]
    program.add("and", "", *steps)
    places = [described(items[0], first), described(items[1], second)]
    implied = uniquely_described(items[0], first) | uniquely_described(items[1], second)
    if all(states):
        implied |= has(items[0], key) | has(items[1], key)
        sufficient = [places[0] | places[1] | has(items[0], key) | has(items[1], key)]
    else:
        wrong = [index for index in (0, 1) if not states[index]]
        sufficient = [places[i] | has(items[i], key) for i in wrong]
        sufficient += [places[i] | is_not(items[i], value) for i in wrong]
    off = 0 if not states[0] else 1
    return Draft(
        wordings=(f"Are the {{0}} and the {{1}} both {value}?",),
        mentions=(first.mention(items[0]), second.mention(items[1])),
        answer=yes_or_no(all(states)),
        full_answer=f"Yes, both the {{0}} and the {{1}} are {value}."
        if all(states)
        else f"No, the {{{off}}} is {values[off]}.",
        program=program,
        kind=("logical", "attr", "verifyAttrAnd"),
        subject=key,
        local=f"09verifyAttrAnd-{'_'.join(sorted((first.noun, second.noun)))}",
        valid=YES_NO,
        implied=implied,
        sufficient=sufficient,
    )


def compare(rng: random.Random, scene: Scene, operation: str) -> Draft | None:
    """Ask "Do the circle and the star have the same color?", or ``different``."""
    key = rng.choice(scene.world.compared)
    equal = rng.random() < 0.5
    items = [item for item in scene.objects if item.value(key)]
    rng.shuffle(items)
    pairs = [
        (a, b)
        for position, a in enumerate(items)
        for b in items[position + 1 :]
        if (a.value(key) == b.value(key)) == equal
    ]
    if not pairs:
        return None
    a, b = pairs[0]
    first, second = (
        referring_expression(rng, scene, a, avoid=(key,)),
        referring_expression(rng, scene, b, avoid=(key,)),
    )
    if first is None or second is None:
        return None
    answer = yes_or_no(equal == (operation == "same"))
    program = Program()
    steps = (program.select(first, [a]), program.select(second, [b]))
    program.add(f"{operation} {key}", "", *steps)
    wordings = {
        "same": (
            f"Do the {{0}} and the {{1}} have the same {key}?",
            f"Is the {key} of the {{0}} the same as the {key} of the {{1}}?",
        ),
        "different": (
            f"Do the {{0}} and the {{1}} have different {key}s?",
            f"Is the {key} of the {{0}} different from the {key} of the {{1}}?",
        ),
    }[operation]
    places = described(a, first) | described(b, second)
    return Draft(
        wordings=wordings,
        mentions=(first.mention(a), second.mention(b)),
        answer=answer,
        full_answer=f"{answer.title()}, both the {{0}} and the {{1}} are {a.value(key)}."
        if equal
        else f"{answer.title()}, the {{0}} is {a.value(key)} and the {{1}} is {b.value(key)}.",
        program=program,
        kind=("compare", "attr", f"two{operation.title()}"),
        subject=key,
        local=f"09{operation[:4]}-{'_'.join(sorted((first.noun, second.noun)))}",
        valid=YES_NO,
        implied=uniquely_described(a, first) | uniquely_described(b, second) | compared(a, b, key),
        sufficient=[places | has(a, key) | has(b, key), places | compared(a, b, key)],
    )
