"""This library's tensor files: safetensors with a checksum over the whole content.

Anything but tensors is text in the metadata. Reading a file executes no code from it.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lavis_ext.common.files import check_regular, written_aside

DIGEST = "digest"
"""Key of the checksum in the metadata."""


class DamagedTensors(Exception):
    """Raised for a file that differs from the written one. The message doesn't name the file."""


def write_tensors(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and metadata with their checksum to a temporary file, flush it and rename it.

    Raises OSError if that fails; ``path`` is then unchanged.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = _digest(metadata, on_host)
    with written_aside(path, flushed=True) as aside:
        try:
            save_file(on_host, aside, metadata={**metadata, DIGEST: digest})
        except SafetensorError as error:
            # The error number is only in the message.
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
            raise


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a file's metadata and tensors, on the CPU.

    Raises DamagedTensors for a file that can't be read, isn't safetensors, or doesn't match its
    checksum. Files of early versions have no ``DIGEST`` in their metadata.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedTensors(f"can't be read ({error})") from None
    facts = {name: text for name, text in metadata.items() if name != DIGEST}
    if DIGEST in metadata and metadata[DIGEST] != _digest(facts, tensors):
        raise DamagedTensors("is damaged: its checksum doesn't match")
    return metadata, tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read metadata without verifying the checksum. Raises DamagedTensors if unreadable."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DamagedTensors(f"can't be read ({error})") from None


def count_numbers(path: Path) -> int:
    """Number of values of a file's tensors, without reading them.

    Raises DamagedTensors if unreadable.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedTensors(f"can't be read ({error})") from None


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
