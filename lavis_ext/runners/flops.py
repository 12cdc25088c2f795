"""FLOPs of a training step: what is paid for each image, and what for each example.

They are counted by torch on the device ``meta``, which has shapes and no numbers, so that a model
of any size is counted in seconds, and no kernel's recomputations are. A multiplication and an
addition are two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lavis_ext.datasets.base import to_device
from lavis_ext.models.base import TrainableModel, total_loss


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
        example: of an example without its image.
        encoders: what of an image is the frozen encoders'; 0 with stored features.
        images, examples: in the batch.
        activation_bytes: what the batch keeps for its backward pass, in float32.
    """

    image: Passes
    example: Passes
    encoders: float
    images: int
    examples: int
    activation_bytes: int

    @property
    def an_example(self) -> float:
        """Of an example with its share of the image, forward and backward."""
        return self.example.both + self.image.both * self.images / self.examples

    def evaluation(self, images: int, examples: int) -> float:
        """Of an evaluation of so many examples about so many images."""
        return images * self.image.forward + examples * self.example.forward


def count_flops(model: TrainableModel, samples: Any, on_host: Sequence[str]) -> BatchFlops:
    """FLOPs of a batch in training.

    ``model`` is on the device ``meta``, frozen but for what is trained. The batch is counted with
    its examples once, twice and three times (``TrainableModel.with_examples``). Its cost is a
    polynomial in that number (attention between the places of a row is quadratic), and what of it
    doesn't depend on it is the images'. Of a model that can't tell, all of it is the images'.
    ``on_host`` are the data set's fields that shapes depend on, which ``meta`` doesn't have.
    """
    samples = to_device(samples, torch.device("meta"), on_host)
    examples = len(samples["ids"])
    images = images_of(samples)
    kept = _Kept(model)
    with kept:
        once = count_passes(lambda batch: total_loss(model(batch)), samples)
    of_images = once
    if model.with_examples(samples, 1) is not None:
        twice, thrice = (
            count_passes(
                lambda batch: total_loss(model(batch)), model.with_examples(samples, times)
            )
            for times in (2, 3)
        )
        of_images = once.less(twice).times(3).less(thrice.times(-1))
    model.zero_grad(set_to_none=True)
    with counted_flops() as counter, torch.no_grad():
        for name, encoder in model.streams.items():
            if name in samples.get("images", {}):
                encoder.encode(samples["images"][name])
    return BatchFlops(
        of_images.times(1 / images),
        once.less(of_images).times(1 / examples),
        counter.get_total_flops() / images,
        images,
        examples,
        kept.bytes,
    )


def images_of(samples: Any) -> int:
    """The images of a batch."""
    streams = samples.get("images") or {n: t.values for n, t in samples["tokens"].items()}
    return len(next(iter(streams.values())))


def count_passes(loss: Callable[[Any], torch.Tensor], samples: Any) -> Passes:
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
