"""Questions drawn from templates, before they are worded."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from lavis_ext.datasets.mini_gqa.facts import Facts
from lavis_ext.datasets.mini_gqa.scenes import Scene
from lavis_ext.datasets.mini_gqa.wording import Mention, Program


@dataclass(slots=True)
class Draft:
    """One question about one scene.

    Attributes:
        wordings: equivalent templates, for ``wording.fill`` with ``mentions``.
        full_answer: template of the answer as a sentence, filled likewise.
        kind: GQA's types: (structural, semantic, detailed).
        local: GQA's local group, shared by the same question about other images.
        group: GQA's global group, or None.
        subject: attribute type or noun that distinguishes families of one detailed type.
        valid: GQA's valid answers, of the right kind for the question.
        plausible: GQA's plausible answers, possible in this world.
        implied: facts that follow from the answer.
        sufficient: sets of atoms, each sufficient to know the answer.
        option: index (0 or 1) of the answer among the options of a choice.
        answer_id: id of the object that the answer names.
        family: the detailed type and ``subject``; answers are balanced within it.
    """

    wordings: tuple[str, ...]
    mentions: tuple[Mention, ...]
    answer: str
    full_answer: str
    program: Program
    kind: tuple[str, str, str]
    local: str
    valid: tuple[str, ...]
    implied: Facts
    sufficient: list[Facts]
    subject: str = ""
    group: str | None = None
    plausible: tuple[str, ...] = ()
    option: int | None = None
    answer_id: str | None = None
    family: str = field(init=False)

    def __post_init__(self) -> None:
        self.plausible = self.plausible or self.valid
        self.family = self.kind[2] + (f".{self.subject}" if self.subject else "")


TemplateFunction = Callable[[random.Random, Scene], Draft | None]
"""Draws one question about a scene; None if the draw doesn't suit the scene."""
YES_NO = ("yes", "no")


def yes_or_no(truth: bool) -> str:
    """The answer "yes" or "no"."""
    return "yes" if truth else "no"
