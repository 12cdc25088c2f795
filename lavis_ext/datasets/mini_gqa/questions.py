"""All questions of a scene, worded, linked by entailment, and as GQA records."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis_ext.datasets.mini_gqa.drafts import Draft
from lavis_ext.datasets.mini_gqa.facts import Facts
from lavis_ext.datasets.mini_gqa.scenes import Scene
from lavis_ext.datasets.mini_gqa.templates import TEMPLATES
from lavis_ext.datasets.mini_gqa.wording import fill

PARAPHRASE_RATE = 0.15


@dataclass(frozen=True, slots=True)
class Question:
    """The part of a worded question that balancing and answer choices need (see ``Draft``)."""

    id: str
    image_id: str
    family: str
    structural: str
    answer: str
    option: int | None
    local: str
    valid: tuple[str, ...]
    plausible: tuple[str, ...]


def generate_questions(rng: random.Random, scene: Scene) -> list[tuple[Question, dict[str, Any]]]:
    """Draw the questions of a scene, each with its GQA record, in which ``isBalanced`` is false.

    A question's id is the image's id and two more digits.
    """
    worded: dict[str, tuple[Draft, str]] = {}
    for template, tries in TEMPLATES[scene.world.name]:
        for _ in range(tries):
            draft = template(rng, scene)
            if draft is None:
                continue
            count = 2 if rng.random() < PARAPHRASE_RATE else 1
            for wording in rng.sample(draft.wordings, min(count, len(draft.wordings))):
                worded.setdefault(fill(wording, draft.mentions)[0], (draft, wording))
    asked = list(worded.values())
    rng.shuffle(asked)
    records = [_record(scene, draft, wording) for draft, wording in asked]
    ids = [f"{scene.image_id}{number:02d}" for number in range(len(asked))]
    _add_entailments(ids, records, [draft for draft, _ in asked])
    questions = [
        Question(
            id=question_id,
            image_id=scene.image_id,
            family=draft.family,
            structural=draft.kind[0],
            answer=draft.answer,
            option=draft.option,
            local=draft.local,
            valid=draft.valid,
            plausible=draft.plausible,
        )
        for question_id, (draft, _) in zip(ids, asked, strict=True)
    ]
    return list(zip(questions, records, strict=True))


def _record(scene: Scene, draft: Draft, wording: str) -> dict[str, Any]:
    """The GQA record without ``entailed`` and ``equivalent``."""
    text, spans = fill(wording, draft.mentions)
    full_answer, full_spans = fill(draft.full_answer, draft.mentions)
    structural, semantic, detailed = draft.kind
    return {
        "question": text,
        "imageId": scene.image_id,
        "isBalanced": False,
        "answer": draft.answer,
        "fullAnswer": full_answer,
        "semantic": draft.program.semantic(),
        "semanticStr": draft.program.text(),
        "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
        "groups": {"global": draft.group, "local": draft.local},
        "annotations": {
            "answer": {} if draft.answer_id is None else {"0": draft.answer_id},
            "question": spans,
            "fullAnswer": full_spans,
        },
    }


def _add_entailments(
    ids: Sequence[str], records: list[dict[str, Any]], drafts: Sequence[Draft]
) -> None:
    """Fill ``equivalent`` (same program) and ``entailed`` of the questions of one image."""
    same: dict[str, list[str]] = defaultdict(list)
    answered_by: dict[Facts, set[int]] = defaultdict(set)
    for number, (record, draft) in enumerate(zip(records, drafts, strict=True)):
        same[record["semanticStr"]].append(ids[number])
        for facts in draft.sufficient:
            answered_by[facts].add(number)
    for number, (record, draft) in enumerate(zip(records, drafts, strict=True)):
        follow: set[int] = set()
        for facts, numbers in answered_by.items():
            if facts <= draft.implied:
                follow |= numbers
        equivalent = same[record["semanticStr"]]
        entailed = {ids[other] for other in follow}.union(equivalent) - {ids[number]}
        record["equivalent"] = equivalent
        record["entailed"] = sorted(entailed)
