"""Items in groups."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Group ``items`` into lists of at most ``size``, taking no more of them than is asked for."""
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group
