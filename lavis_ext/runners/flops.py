"""FLOPs of a training step: what is paid for each image, and what for each question.

They are counted by torch on the device ``meta``, which has shapes and no numbers, so that a model
of any size is counted in seconds, and no kernel's recomputations are. A multiplication and an
addition are two.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lavis_ext.datasets.gqa.dataset import FusionSamples
from lavis_ext.datasets.loader import to_device


@dataclass(frozen=True)
class Passes:
    """FLOPs forward and backward."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def times(self, factor: float) -> "Passes":
        """So many times these."""
        return Passes(self.forward * factor, self.backward * factor)

    def less(self, other: "Passes") -> "Passes":
        """Without ``other``."""
        return Passes(self.forward - other.forward, self.backward - other.backward)


@dataclass(frozen=True)
class BatchFlops:
    """FLOPs of a batch, split up.

    Attributes:
        image: of an image: encoders, fusion, keys and values.
        question: of a question without the image, its mismatched ones counted in.
        encoders: what of an image is the frozen encoders'; 0 with stored features.
        images, questions: in the batch.
        activation_bytes: what the batch keeps for its backward pass, in float32.
    """

    image: Passes
    question: Passes
    encoders: float
    images: int
    questions: int
    activation_bytes: int

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
    The batch is counted with its questions once, twice and three times. Its cost is a polynomial in
    that number (attention between the places of a row is quadratic), and what of it doesn't depend
    on it is the images'.
    """
    samples = to_device(samples, torch.device("meta"))
    questions = len(samples["text_input"])
    images = int(samples["image_index"].max()) + 1
    kept = _Kept(model)
    with kept:
        once = count_passes(lambda batch: model(batch)["loss"], samples)
    twice, thrice = (
        count_passes(lambda batch: model(batch)["loss"], _asked_more(samples, times))
        for times in (2, 3)
    )
    model.zero_grad(set_to_none=True)
    of_images = once.less(twice).times(3).less(thrice.times(-1))
    with counted_flops() as counter, torch.no_grad():
        given: Any = samples
        for stream in model.image_streams():
            if f"{stream.name}_image" in given:
                stream.encode(given[f"{stream.name}_image"])
    return BatchFlops(
        of_images.times(1 / images),
        once.less(of_images).times(1 / questions),
        counter.get_total_flops() / images,
        images,
        questions,
        kept.bytes,
    )


def count_passes(loss: Callable[[FusionSamples], torch.Tensor], samples: FusionSamples) -> Passes:
    """FLOPs of a batch's loss and of its gradients. The batch is on the model's device."""
    with counted_flops() as counter:
        value = loss(samples)
        forward = counter.get_total_flops()
        value.backward()
    return Passes(forward, counter.get_total_flops() - forward)


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Counts the FLOPs of what runs within, attention as the matrix products that it stands for.

    Kernels of fused attention differ between devices and torch releases, and torch has no formula
    for some of them (the CPU's counts as nothing); matrix products have one everywhere.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for a backward pass, parameters left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._own = {_storage(tensor) for tensor in model.parameters()}
        self._kept: dict[int, torch.Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if (storage := _storage(tensor)) not in self._own:
            # Held, so that no other storage gets its address.
            self._kept[storage] = tensor
        return tensor


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _asked_more(samples: FusionSamples, times: int) -> FusionSamples:
    """The batch with each question so many times, in other words: equal texts are read once."""
    return {
        **samples,
        "image_index": samples["image_index"].repeat(times),
        "text_input": _reworded(samples["text_input"], times),
        "mismatched_input": _reworded(samples["mismatched_input"], times),
        "answer": samples["answer"] * times,
        "question_id": samples["question_id"] * times,
        "global_size": times * samples["global_size"],
    }


def _reworded(texts: list[str], times: int) -> list[str]:
    """The texts, then the texts with their words moved on by one, by two, and so on."""
    words = [text.split() for text in texts]
    return [" ".join(each[n:] + each[:n]) for n in range(times) for each in words]
