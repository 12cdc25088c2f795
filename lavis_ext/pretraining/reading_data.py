"""What the miniature's reader is trained on: questions with captions of their images."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.grounded_questions import GroundedQuestion
from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph
from lavis_ext.datasets.mini_gqa.vocabulary import KEY_OF, OBJECT_VALUES
from lavis_ext.pretraining.datasets import PretrainingDataConfig, PretrainingDataset
from lavis_ext.pretraining.descriptions import caption


class ReadingSamples(TypedDict):
    """A batch of Q questions with captions of their images."""

    questions: list[str]
    """[Q]."""
    captions: list[list[str]]
    """[Q] lists."""
    about: list[list[bool]]
    """Whether each caption is about an object that is asked about."""
    answers: list[str]
    """[Q]."""
    global_size: int
    """Questions in the batch over all processes."""


@dataclass
class ReadingDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_reading``."""

    fewest_captions: int = option(2, "Captions of a question, at least.", at_least=1)
    most_captions: int = option(10, "Captions of a question, at most.", at_least=1)
    focus: float = option(
        5.0, "How much more often the objects asked about are described than others.", at_least=1
    )
    errors: float = option(
        0.05, "Share of captions with one wrong word, as captioners make them.", at_least=0
    )

    def check_together(self, where: str) -> None:
        """Fewest and most in order."""
        if self.fewest_captions > self.most_captions:
            raise UserError(f"{where}.fewest_captions is above most_captions.")


class ReadingDataset(PretrainingDataset):
    """Questions with true captions of their image, mostly about the objects asked for."""

    Config = ReadingDataConfig

    def _records(self) -> list[tuple[str, GroundedQuestion]]:
        questions = self.split.questions
        return [(image_id, each) for image_id in sorted(questions) for each in questions[image_id]]

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """Question, captions, what they are about, and answer of a row."""
        image_id, question = self.records[row]
        graph = self.split.graphs[image_id]
        weights = [
            self.config.focus if item.id in question.objects else 1.0 for item in graph.objects
        ]
        count = rng.randint(self.config.fewest_captions, self.config.most_captions)
        captions = {  # each once, as the captioner's are distinct
            self._caption(item, graph, rng): item.id in question.objects
            for item in rng.choices(graph.objects, weights, k=count)
        }
        return {
            "questions": question.text,
            "captions": list(captions),
            "about": list(captions.values()),
            "answers": question.answer,
        }

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See :class:`ReadingSamples`."""
        return {name: [sample[name] for sample in samples] for name in samples[0]}

    def _caption(self, item: GraphObject, graph: SceneGraph, rng: random.Random) -> str:
        text = caption(item, graph, rng)
        return with_wrong_word(text, rng) if rng.random() < self.config.errors else text


def with_wrong_word(text: str, rng: random.Random) -> str:
    """The text with one attribute or name put in place of another of its kind."""
    words = text.split()
    places = [place for place, word in enumerate(words) if word in KEY_OF]
    place = rng.choice(places)
    words[place] = rng.choice(OBJECT_VALUES[KEY_OF[words[place]]])
    return " ".join(words)
