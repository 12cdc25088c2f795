"""Isolate the modules imported by the documentation's examples."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _modules_of_examples() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("my_fusion", "my_encoder", "image_folder"):
        sys.modules.pop(name, None)
