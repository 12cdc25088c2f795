"""Randomness that depends on what it is for, and not on batches, workers or processes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def hashed(*labels: str | int) -> bytes:
    """64 bits for these labels, such as an image and an epoch."""
    return hashlib.blake2b("\0".join(map(str, labels)).encode(), digest_size=8).digest()


def seed_of(*labels: str | int) -> int:
    """A seed of 63 bits, as torch takes them, for these labels."""
    return int.from_bytes(hashed(*labels), "little") >> 1


@contextmanager
def seeded(*labels: str | int) -> Iterator[None]:
    """torch's random numbers on the CPU are a function of ``labels`` in the block."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*labels))
        yield
