"""The random numbers of a process: taken down, and put back."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch (CPU and, where it is a GPU, ``device``) as tensors by name.

    With them, as plain values, the states of Python's and NumPy's generators.
    """
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (others may draw from it)
    return tensors, {"python": random.getstate(), "numpy": [kind, list(map(int, keys)), *rest]}


def set_random_states(
    tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device
) -> None:
    """Put back what ``random_states`` gave, also after the values were JSON.

    A state of a GPU is left aside where ``device`` is none.
    """
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(values["numpy"]))  # noqa: NPY002
