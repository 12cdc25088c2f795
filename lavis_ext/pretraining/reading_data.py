"""Training data of the miniature's reader: questions with captions of their images."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.grounded_questions import GroundedQuestion
from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph
from lavis_ext.datasets.mini_gqa.vocabulary import KEY_OF, World
from lavis_ext.pretraining.datasets import PretrainingDataConfig, PretrainingDataset
from lavis_ext.pretraining.descriptions import describe


class ReadingSamples(TypedDict):
    """A batch of Q questions with captions of their images."""

    questions: list[str]
    """[Q]."""
    captions: list[list[str]]
    """Captions of each question, [Q] lists."""
    about: list[list[bool]]
    """Whether each caption is about an object in the question, [Q] lists."""
    answers: list[str]
    """[Q]."""
    global_size: int
    """Questions in the batch over all ranks."""


@dataclass
class ReadingDataConfig(PretrainingDataConfig):
    """Options of ``mini_gqa_reading``."""

    fewest_captions: int = option(2, "Fewest captions of a question.", at_least=1)
    most_captions: int = option(10, "Most captions of a question.", at_least=1)
    focus: float = option(
        5.0,
        "Sampling weight of objects in the question for captions, relative to 1 for others.",
        at_least=1,
    )
    sentences: float = option(
        0.0,
        "Share of captions that are whole sentences, as a captioner writes that has read some.",
        at_least=0,
        at_most=1,
    )
    errors: float = option(
        0.05, "Share of captions with one wrong word, like a captioner's mistakes.", at_least=0
    )

    def check_together(self, where: str) -> None:
        """Raise UserError if ``fewest_captions`` is above ``most_captions``."""
        if self.fewest_captions > self.most_captions:
            raise UserError(f"{where}.fewest_captions is above most_captions.")


class ReadingDataset(PretrainingDataset):
    """Questions with captions of their image, mostly about the objects in the question."""

    Config = ReadingDataConfig

    def _records(self) -> list[tuple[str, GroundedQuestion]]:
        questions = self.split.questions
        return [(image_id, each) for image_id in sorted(questions) for each in questions[image_id]]

    def draw(self, row: int, rng: random.Random) -> dict[str, Any]:
        """Draw captions for a row's question, with their relevance and the answer."""
        image_id, question = self.records[row]
        graph = self.split.graphs[image_id]
        weights = [
            self.config.focus if item.id in question.objects else 1.0 for item in graph.objects
        ]
        count = rng.randint(self.config.fewest_captions, self.config.most_captions)
        captions = {  # without duplicates, like the captioner's
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
        text = describe(item, graph, rng, sentences=self.config.sentences)
        return with_wrong_word(text, rng, self.world) if rng.random() < self.config.errors else text


def with_wrong_word(text: str, rng: random.Random, world: World) -> str:
    """Replace one attribute or name of a caption, if it has any, by a random one of its type."""
    words = text.split()
    places = [place for place, word in enumerate(words) if word in KEY_OF]
    if not places:  # such as "there is a round shape"
        return text
    place = rng.choice(places)
    words[place] = rng.choice(world.values[KEY_OF[words[place]]])
    return " ".join(words)
