"""Reading weights: read a file's tensors, put them into a module or refuse.

A checkpoint that only half fits is the most silent of errors, so nothing here is lenient: whatever
does not match has to be named in the config (``allow_missing``, ``allow_unexpected``).
"""

import io
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import parse_json

INDEX_SUFFIX = ".index.json"
SHARD_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)
MOST_GROWTH = 10
"""How many times larger than an archive of weights what is in it may be: they hardly shrink."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Reads ``.safetensors``, an index of shards (``*.index.json``), or torch's own format with
    pickled code refused. A dict under the top-level key ``model`` or ``state_dict`` is unwrapped
    where nothing beside it is a tensor (optimizer state, epoch, arguments).

    Raises UserError for a file that is damaged, holds code or holds anything but tensors.
    """
    if path.name.endswith(INDEX_SUFFIX):
        tensors: dict[str, Tensor] = {}
        for shard in shards(path):
            tensors.update(read_state_dict(path.parent / shard))
        return tensors
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _tensors_of(content, path)


@dataclass(frozen=True)
class LoadReport:
    """What ``load_into`` found. ``str()`` gives one line for the log."""

    name: str
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    allowed: tuple[str, ...]

    @property
    def found(self) -> int:
        """Number of the module's parameters and buffers that the checkpoint filled."""
        return self.total - len(self.missing)

    def __str__(self) -> str:
        line = (
            f"{self.name}: {self.found} of {self.total} parameters found, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        )
        return f"{line} (allowed: {', '.join(self.allowed)})" if self.allowed else line


def load_into(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    name: str,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> LoadReport:
    """Copy ``state_dict`` into ``module``, or change nothing and say what does not fit.

    ``allow_missing`` and ``allow_unexpected`` are shell patterns (``mask_decoder.*``) over names
    that the checkpoint may lack or have in excess. A tensor of another shape is never accepted.

    Raises UserError with the counts and the first few names for anything that is not allowed.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    mismatched = [
        f"{key} (checkpoint {_shape(tensor)}, model {_shape(own[key])})"
        for key, tensor in state_dict.items()
        if key in own and tensor.shape != own[key].shape
    ]
    refused_missing = [key for key in missing if not _matching(key, allow_missing)]
    refused_unexpected = [key for key in unexpected if not _matching(key, allow_unexpected)]
    if refused_missing or refused_unexpected or mismatched:
        raise UserError(
            f"{name}: the weights do not fit: {len(own) - len(missing) - len(mismatched)} of "
            f"{len(own)} parameters match"
            + _listed("of another shape", mismatched)
            + _listed("missing", refused_missing)
            + _listed("unexpected", refused_unexpected)
            + ". Check the sizes in the config; names that may differ go into allow_missing or "
            "allow_unexpected as patterns."
        )
    module.load_state_dict({key: state_dict[key] for key in own if key in state_dict}, strict=False)
    used = [
        pattern
        for names, patterns in ((missing, allow_missing), (unexpected, allow_unexpected))
        for pattern in patterns
        if any(fnmatchcase(key, pattern) for key in names)
    ]
    return LoadReport(name, len(own), tuple(missing), tuple(unexpected), tuple(used))


def _matching(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(kind: str, names: Sequence[str], first: int = 3) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - first} more" if len(names) > first else ""
    return (
        f"; {len(names)} {kind}: {', '.join(shortened(name, 120) for name in names[:first])}{rest}"
    )


def shards(index: Path) -> list[str]:
    """Names of the shards, which lie beside their index and nowhere else."""
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of sharded weights: {error!r:.120}.") from error
    for name in names:
        if (
            not isinstance(name, str)
            or not SHARD_NAME.fullmatch(name)
            or name.endswith(INDEX_SUFFIX)
        ):
            raise UserError(
                f"{index} names the shard '{shortened(str(name))}', which is no file of weights "
                "beside it."
            )
    if not names:
        raise UserError(f"{index} is no index of sharded weights: it names none.")
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}.") from error


def _read_pickle(path: Path) -> Any:
    try:
        with _unpacked(path) as file:
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes raise whatever the reader stumbles over
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"{path} holds more than tensors: opening it would run code "
                f"({shortened(code[1])}). Open it where you trust it and save its state dict "
                "alone, best as safetensors."
            ) from error
        # Torch puts advice to load the code after all before what it found.
        _, _, found = str(error).rpartition("WeightsUnpickler error: ")
        reason = shortened((found.strip() or repr(error)).splitlines()[0], 120)
        raise UserError(f"{path} is damaged or no weights file ({reason}).") from error


def _unpacked(path: Path) -> IO[bytes]:
    """``path`` opened or, of an archive with one file in it, that file.

    What torch writes is an archive too, of many files. Raises ValueError for an archive that would
    come to many times its size: both are read into memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size, unpacked = path.stat().st_size, sum(each.file_size for each in archive.infolist())
            if unpacked > MOST_GROWTH * size:
                raise ValueError(f"{unpacked:,} bytes are packed into {size:,}")
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) == 1:
                return io.BytesIO(archive.read(names[0]))
    return path.open("rb")


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for wrapper in ("model", "state_dict"):
            beside = [value for key, value in content.items() if key != wrapper]
            if isinstance(content.get(wrapper), dict) and not any(
                isinstance(value, Tensor) for value in beside
            ):
                content = content[wrapper]
                break
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no named tensors.")
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise UserError(
                f"{path} is no state dict: no plain tensor under '{shortened(str(key))}'."
            )
    return content


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor that has its numbers one beside the other, and no other kind."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and not value.is_quantized
        and not value.is_complex()
    )
