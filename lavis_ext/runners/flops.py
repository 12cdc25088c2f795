"""FLOPs of a training step: what is paid for each image, and what for each question.

They are counted by torch on the device ``meta``, which has shapes and no numbers, so that a model
of any size is counted in seconds, and no kernel's recomputations are. A multiplication and an
addition are two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lavis_ext.datasets.gqa import FusionSamples
from lavis_ext.datasets.loading import to_device


@dataclass(frozen=True)
class Passes:
    """FLOPs forward and backward."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def per(self, count: float) -> "Passes":
        """Of one of so many."""
        return Passes(self.forward / count, self.backward / count)

    def less(self, other: "Passes", times: float = 1.0) -> "Passes":
        """Without so many times ``other``."""
        return Passes(self.forward - times * other.forward, self.backward - times * other.backward)


@dataclass(frozen=True)
class BatchFlops:
    """FLOPs of a batch, split up.

    Attributes:
        image: of an image: encoders, fusion, keys and values.
        question: of one more question about an image that is there already, its mismatched ones
            counted in.
        encoders: what of an image is the frozen encoders'; 0 with stored features.
        images, questions: in the batch.
    """

    image: Passes
    question: Passes
    encoders: float
    images: int
    questions: int

    @property
    def a_question(self) -> float:
        """Of a question with its share of the image, forward and backward."""
        return self.question.both + self.image.both * self.images / self.questions

    def evaluation(self, images: int, questions: int) -> float:
        """Of an evaluation of so many questions about so many images."""
        return images * self.image.forward + questions * self.question.forward


def count_flops(model: Any, samples: FusionSamples) -> BatchFlops:
    """FLOPs of a batch in training.

    ``model`` is on the device ``meta``, frozen but for what is trained, and has ``image_streams``.
    What a question costs is how much more the batch costs when each image is asked twice as many.
    """
    samples = to_device(samples, torch.device("meta"))
    questions = len(samples["text_input"])
    images = int(samples["image_index"].max()) + 1
    once, twice = (
        count_passes(lambda batch: model(batch)["loss"], batch)
        for batch in (samples, _with_more_questions(samples))
    )
    model.zero_grad(set_to_none=True)
    question = twice.less(once).per(questions)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        given: Any = samples
        for stream in model.image_streams():
            if f"{stream.name}_image" in given:
                stream.encode(given[f"{stream.name}_image"])
    return BatchFlops(
        once.less(question, questions).per(images),
        question,
        counter.get_total_flops() / images,
        images,
        questions,
    )


def count_passes(loss: Callable[[FusionSamples], torch.Tensor], samples: FusionSamples) -> Passes:
    """FLOPs of a batch's loss and of its gradients. The batch is on the model's device."""
    with FlopCounterMode(display=False) as counter:
        value = loss(samples)
        forward = counter.get_total_flops()
        value.backward()
    return Passes(forward, counter.get_total_flops() - forward)


def _with_more_questions(samples: FusionSamples) -> FusionSamples:
    """Each question once more, as long as it was and yet another: equal texts are read once."""
    return {
        **samples,
        "image_index": samples["image_index"].repeat(2),
        "text_input": samples["text_input"] + _others(samples["text_input"]),
        "mismatched_input": samples["mismatched_input"] + _others(samples["mismatched_input"]),
        "answer": samples["answer"] * 2,
        "question_id": samples["question_id"] * 2,
        "global_size": 2 * samples["global_size"],
    }


def _others(texts: list[str]) -> list[str]:
    return [" ".join(reversed(text.split())) for text in texts]
