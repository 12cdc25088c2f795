"""Random numbers as a function of a key, independent of batch, order, device and process.

A key is an int64, hashed from a text such as a question id; integers (caption, attempt, step, word)
are folded into it, as in JAX's ``random.fold_in``. Every key gives one random number, and only
needed ones are drawn: in captioning, for 50 of 30,524 words per step.
"""

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

from lavis_ext.datasets.seeds import hashed

# SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
UNIFORM_BITS = 52


def text_keys(texts: Sequence[str], *labels: str | int) -> Tensor:
    """The keys of ``texts``, int64 [len(texts)] on the CPU.

    Other ``labels``, such as a seed and a purpose, give unrelated keys.
    """
    hashes = (hashed(*labels, text) for text in texts)
    return torch.tensor(
        [int.from_bytes(each, "little", signed=True) for each in hashes], dtype=torch.int64
    )


def fold_in(keys: Tensor, numbers: Tensor | int) -> Tensor:
    """Keys of (key, number), int64, in the shape that ``keys`` and ``numbers`` broadcast to.

    ``fold_in(key, n)`` is output n of SplitMix64 started at ``key``. Numbers are int64.
    """
    # As tensors, because int64 wraps around and Python's integers don't.
    numbers = torch.as_tensor(numbers, dtype=torch.int64, device=keys.device)
    mixed = keys + (numbers + 1) * _signed(GOLDEN_GAMMA)
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        mixed = (mixed ^ _shifted_right(mixed, shift)) * _signed(multiplier)
    return mixed ^ _shifted_right(mixed, 31)


def uniform(keys: Tensor) -> Tensor:
    """A number in (0, 1) for each key, float64, shaped as ``keys``."""
    bits = _shifted_right(keys, 64 - UNIFORM_BITS)
    # The middle of each step, so that 0 and 1 don't occur and all values are exact in float64.
    return (bits.double() + 0.5) * 2.0**-UNIFORM_BITS


def gumbel(keys: Tensor) -> Tensor:
    """Standard Gumbel noise for each key, float64, shaped as ``keys``.

    The argmax of ``logits + gumbel`` is a sample of ``softmax(logits)``, and its k largest are k
    samples without replacement (Kool et al., ICML 2019). In float64, because the choice between
    equal values would depend on the device.
    """
    return -torch.log(-torch.log(uniform(keys)))


class KeyedSampling(transformers.LogitsProcessor):
    """Turns greedy search into sampling by Gumbel noise on the scores that filters left.

    Each row's noise depends on its own key (int64 [R]) and the step, not on other rows or torch's
    random state.
    """

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V] with noise; -inf stays. ``input_ids`` [R, step] gives the step."""
        keys = fold_in(self._keys, input_ids.shape[1])
        row, word = (scores > -torch.inf).nonzero(as_tuple=True)
        noisy = scores.clone()
        noisy[row, word] += gumbel(fold_in(keys[row], word)).to(scores.dtype)
        return noisy


def _shifted_right(values: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic for int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """The int64 with the bits of an unsigned constant."""
    return constant - (1 << 64) if constant >> 63 else constant
