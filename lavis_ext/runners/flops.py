"""FLOPs of a training step, split into the cost of an image and of an example.

torch counts them on the ``meta`` device, which has shapes but no values, so a model of any size is
counted in seconds and without recomputations inside kernels. A multiply-add counts as two.
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
    """FLOPs of a forward and a backward pass."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Sum of forward and backward."""
        return self.forward + self.backward

    def times(self, factor: float) -> "Passes":
        """Both counts multiplied by ``factor``."""
        return Passes(self.forward * factor, self.backward * factor)

    def less(self, other: "Passes") -> "Passes":
        """Both counts minus those of ``other``."""
        return Passes(self.forward - other.forward, self.backward - other.backward)


@dataclass(frozen=True)
class BatchFlops:
    """FLOPs of a batch by image and by example.

    Attributes:
        image: FLOPs of an image: encoders, fusion, keys and values.
        example: FLOPs of an example without its image.
        encoders: share of ``image`` spent in frozen encoders; 0 with stored features.
        images, examples: their numbers in the batch.
        activation_bytes: activations kept for the backward pass, in float32.
    """

    image: Passes
    example: Passes
    encoders: float
    images: int
    examples: int
    activation_bytes: int

    @property
    def an_example(self) -> float:
        """FLOPs of an example with its share of the image, forward and backward."""
        return self.example.both + self.image.both * self.images / self.examples

    def evaluation(self, images: int, examples: int) -> float:
        """FLOPs of an evaluation of ``examples`` about ``images``."""
        return images * self.image.forward + examples * self.example.forward


def count_flops(model: TrainableModel, samples: Any, on_host: Sequence[str]) -> BatchFlops:
    """FLOPs of a batch in training.

    ``model`` has its frozen parameters frozen; on the ``meta`` device nothing is computed. The
    batch is counted with its examples once, twice and three times
    (``TrainableModel.with_examples``). The cost is a quadratic polynomial in that factor (attention
    within a row); its constant term is the cost of the images. For a model without
    ``with_examples``, the images get all of the cost. ``on_host`` names the data set's fields that
    determine shapes; they stay off ``meta``, which has no values.
    """
    samples = to_device(samples, next(model.parameters()).device, on_host)
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
        for name, encoder in model.token_streams.items():
            if (image := encoder.picture or name) in samples.get("images", {}):
                encoder.encode(samples["images"][image])
    return BatchFlops(
        of_images.times(1 / images),
        once.less(of_images).times(1 / examples),
        counter.get_total_flops() / images,
        images,
        examples,
        kept.bytes,
    )


def activation_bytes(model: TrainableModel, samples: Any, on_host: Sequence[str]) -> int:
    """Bytes that a batch keeps for its backward pass, in float32. ``model`` is on ``meta``."""
    samples = to_device(samples, torch.device("meta"), on_host)
    kept = _Kept(model)
    # The kernel that keeps most, which attention with dropout takes on the CPU.
    with kept, sdpa_kernel(SDPBackend.MATH):
        total_loss(model(samples))
    return kept.bytes


def input_bytes(samples: Any) -> int:
    """Bytes of a batch's images or stored tokens."""
    images = samples.get("images") or {n: t.values for n, t in samples.get("tokens", {}).items()}
    return sum(tensor.nbytes for tensor in images.values())


def images_of(samples: Any) -> int:
    """The images of a batch; its examples in a batch that has no images by stream."""
    streams = samples.get("images") or {n: t.values for n, t in samples.get("tokens", {}).items()}
    return len(next(iter(streams.values()), samples["ids"]))


def count_passes(loss: Callable[[Any], torch.Tensor], samples: Any) -> Passes:
    """FLOPs of a batch's loss and gradients. The batch is on the model's device."""
    with counted_flops() as counter:
        value = loss(samples)
        forward = counter.get_total_flops()
        value.backward()
    return Passes(forward, counter.get_total_flops() - forward)


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Context manager that counts FLOPs, with attention as plain matrix products.

    Fused attention kernels differ between devices and torch releases, and torch lacks a formula for
    some of them (the CPU's counts as 0); matrix products have one everywhere.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for a backward pass, without parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._own = {_storage(tensor) for tensor in model.parameters()}
        self._kept: dict[int, torch.Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if (storage := _storage(tensor)) not in self._own:
            # Keep a reference so that no other storage reuses its address.
            self._kept[storage] = tensor
        return tensor


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
