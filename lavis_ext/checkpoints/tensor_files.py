"""Files of tensors that this library writes itself: safetensors, and a checksum of all they hold.

What isn't a tensor is text in the file's metadata. Nothing in it executes code when it is read.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lavis_ext.common.files import written_aside

DIGEST = "digest"
"""The checksum's key in the metadata."""


class DamagedTensors(Exception):
    """A file whose bytes aren't what was written. The text says how, without the file's name."""


def write_tensors(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and metadata with their checksum, aside and flushed.

    Raises OSError where the file can't be written; ``path`` is then as it was.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = _digest(metadata, on_host)
    with written_aside(path, flushed=True) as aside:
        try:
            save_file(on_host, aside, metadata={**metadata, DIGEST: digest})
        except SafetensorError as error:
            # It has the system's number in its text alone.
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
            raise


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, on the CPU.

    Raises DamagedTensors for what is no safetensors file, can't be read, or doesn't fit its
    checksum. A file of before there were checksums has no ``DIGEST`` in its metadata.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedTensors(f"can't be read ({error})") from None
    facts = {name: text for name, text in metadata.items() if name != DIGEST}
    if DIGEST in metadata and metadata[DIGEST] != _digest(facts, tensors):
        raise DamagedTensors("is damaged: its checksum is another")
    return metadata, tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, unchecked. Raises DamagedTensors for what can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DamagedTensors(f"can't be read ({error})") from None


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
