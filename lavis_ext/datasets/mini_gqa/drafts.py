"""What a template knows about a question before it is worded."""

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
        wordings: templates that ask the same, for ``wording.fill`` with ``mentions``.
        full_answer: template of the answer as a sentence, filled likewise.
        kind: GQA's types: (structural, semantic, detailed).
        local: GQA's local group, a name for "the same question about other images".
        group: GQA's global group, or None.
        subject: the attribute type or noun that tells families of one detailed type apart.
        valid: the answers that fit the question.
        plausible: those that can be true in this world.
        tells: what is known once the answer is.
        enough: sets of atoms, each enough to know the answer.
        option: for a choice, the place (0 or 1) of the answer among the options.
        answer_id: the object that the answer names.
        family: the detailed type and ``subject``, within which answers are balanced.
    """

    wordings: tuple[str, ...]
    mentions: tuple[Mention, ...]
    answer: str
    full_answer: str
    program: Program
    kind: tuple[str, str, str]
    local: str
    valid: tuple[str, ...]
    tells: Facts
    enough: list[Facts]
    subject: str = ""
    group: str | None = None
    plausible: tuple[str, ...] = ()
    option: int | None = None
    answer_id: str | None = None
    family: str = field(init=False)

    def __post_init__(self) -> None:
        self.plausible = self.plausible or self.valid
        self.family = self.kind[2] + (f".{self.subject}" if self.subject else "")


# A template draws one question, or None where the scene has no place for it.
TemplateFunction = Callable[[random.Random, Scene], Draft | None]
YES_NO = ("yes", "no")


def yes(truth: bool) -> str:
    """The answer "yes" or "no"."""
    return "yes" if truth else "no"
