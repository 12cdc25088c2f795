"""Random seeds from labels, independent of batches, workers and processes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def hashed(*labels: str | int) -> bytes:
    """64-bit hash of labels, such as an image and an epoch."""
    return hashlib.blake2b("\0".join(map(str, labels)).encode(), digest_size=8).digest()


def seed_of(*labels: str | int) -> int:
    """63-bit seed (torch's limit) from labels."""
    return int.from_bytes(hashed(*labels), "little") >> 1


@contextmanager
def seeded(*labels: str | int) -> Iterator[None]:
    """Context manager that seeds torch's CPU generator by ``labels``, then restores it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*labels))
        yield
