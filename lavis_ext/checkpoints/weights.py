"""Read checkpoints of any origin, and load them into a module.

A partly loaded checkpoint is a silent bug, so every name that doesn't match is an error unless the
config allows it (``allow_missing``, ``allow_unexpected``).
"""

import io
import logging
import pickle
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError, listed, shortened, shortened_name
from lavis_ext.common.files import parse_json

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index.json"
SHARD_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)
TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02")
"""First bytes of torch's archives, and of its earlier pickles."""
MOST_GROWTH = 10
"""Maximum ratio of unpacked to packed size; weights hardly compress, so more is a zip bomb."""
WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "module", "net", "network", "params", "weights"),
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema"),
)
"""Keys of state dicts in training programs' checkpoints, moving averages last."""
MOST_WRAPPERS = 3
"""Maximum nesting of wrappers."""
FEW_MISSING, SMALL_SHARE = 3, 0.1
"""With more missing parameters than both, the checkpoint is taken for another network's."""


class _Inert:
    """Placeholder for objects beside the tensors, such as arguments; stores and runs nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        """Ignore the object's arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


BESIDE_TENSORS = [
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib._local.PosixPath"),
    *("numpy.ndarray", "numpy.dtype"),
    *(
        f"numpy.{core}.multiarray.{made}"
        for core in ("core", "_core")
        for made in ("_reconstruct", "scalar")
    ),
]
"""Objects saved beside a state dict: arguments, and states of NumPy's generator. They are read as
:class:`_Inert`, so that none of their code is called."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors by name, on the CPU.

    Reads safetensors, torch's own format without pickled code, or an index of shards
    (``*.index.json``); the content tells the first two apart, whatever the suffix. A dict under one
    of ``WRAPPERS`` is unwrapped if there is no parameter beside it (only optimizer state, epoch,
    arguments or random states).

    Raises UserError for a file that is damaged, or contains code or no tensors.
    """
    if path.name.endswith(INDEX_SUFFIX):
        tensors: dict[str, Tensor] = {}
        for shard in shards(path):
            tensors.update(read_state_dict(path.parent / shard))
        return tensors
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    return _tensors_of(content, path)


@dataclass(frozen=True)
class LoadReport:
    """Result of ``load_into``. ``str()`` returns one line for the log."""

    name: str
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    allowed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """How names were translated, and what was changed or left out."""
    of_parts: bool = False
    """Whether the file holds only the parts of the model that were trained."""

    @property
    def found(self) -> int:
        """Number of parameters and buffers that the checkpoint filled."""
        return self.total - len(self.missing)

    def __str__(self) -> str:
        if self.of_parts and self.missing:
            line = (
                f"{self.name}: {'' if self.unexpected else 'all '}{self.found} parameters of the "
                "file loaded; as expected, it "
                f"lacks the model's other {len(self.missing)}, which it doesn't train "
                f"({listed(self.allowed)})"
            )
            return "; ".join((line, *self.notes))
        line = (
            f"{self.name}: {self.found} of {self.total} parameters found, "
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        )
        if self.allowed:
            line += f" (allowed: {', '.join(self.allowed)})"
        return "; ".join((line, *self.notes))


def load_into(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    name: str,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> LoadReport:
    """Copy ``state_dict`` into ``module``, or raise and leave the module unchanged.

    ``allow_missing`` and ``allow_unexpected`` are shell patterns (``mask_decoder.*``) of names that
    the checkpoint may lack or have unused. A tensor of another shape is never accepted.
    ``notes`` describe the translation of names (``translate``).

    Raises UserError with the number of disallowed names and the first few of them.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    mismatched = [
        f"{key} (checkpoint {_shape(tensor)}, model {_shape(own[key])})"
        for key, tensor in state_dict.items()
        if key in own and tensor.shape != own[key].shape
    ]
    bad_missing = [key for key in missing if not _matching(key, allow_missing)]
    bad_unexpected = [key for key in unexpected if not _matching(key, allow_unexpected)]
    if bad_missing or bad_unexpected or mismatched:
        raise UserError(
            f"{name}: the weights don't match: {len(own) - len(missing) - len(mismatched)} of "
            f"{len(own)} parameters match"
            + _listed("of another shape", mismatched)
            + _listed("missing", bad_missing)
            + _listed("unexpected", bad_unexpected)
            + (f" ({notes[0]})" if notes else "")
            + _advice(len(bad_missing), len(own), bool(bad_unexpected))
        )
    module.load_state_dict({key: state_dict[key] for key in own if key in state_dict}, strict=False)
    used = [
        pattern
        for names, patterns in ((missing, allow_missing), (unexpected, allow_unexpected))
        for pattern in patterns
        if any(fnmatchcase(key, pattern) for key in names)
    ]
    return LoadReport(name, len(own), tuple(missing), tuple(unexpected), tuple(used), tuple(notes))


def _advice(missing: int, total: int, unexpected: bool) -> str:
    if unexpected and missing > max(FEW_MISSING, SMALL_SHARE * total):
        return (
            ". These weights are another network's or have unknown names, so most parameters would "
            "stay random; use other weights, or check the sizes in the config."
        )
    return (
        ". Check the sizes in the config; allow names to differ with patterns in allow_missing or "
        "allow_unexpected."
    )


def _matching(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(kind: str, names: Sequence[str], first: int = 3) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - first} more" if len(names) > first else ""
    shown = ", ".join(shortened_name(name, 120) for name in names[:first])
    return f"; {len(names)} {kind}: {shown}{rest}"


def shards(index: Path) -> list[str]:
    """File names of an index's shards, which are in the same folder."""
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of sharded weights: {error!r:.120}.") from error
    for name in names:
        if (
            not isinstance(name, str)
            or not SHARD_NAME.fullmatch(name)
            or name.endswith(INDEX_SUFFIX)
        ):
            raise UserError(
                f"{index} lists the shard '{shortened(str(name))}', which is not a weights "
                "file in the same folder."
            )
    if not names:
        raise UserError(f"{index} is not an index of sharded weights: it lists none.")
    return names


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors by its first bytes or, unless they are torch's, by its suffix.

    Safetensors begin with the length of a JSON header (https://github.com/huggingface/safetensors).
    """
    head = b""
    with suppress(OSError), path.open("rb") as file:  # the reader reports it
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not head.startswith(TORCH_MAGIC)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}.") from error


def _read_pickle(path: Path) -> Any:
    try:
        inert: list[Any] = [(_Inert, name) for name in BESIDE_TENSORS]
        with _unpacked(path) as file, torch.serialization.safe_globals(inert):
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes raise errors of any type
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"{path} holds more than tensors: opening it would run code "
                f"({shortened(code[1])}). If you trust it, load it elsewhere and save only its "
                "state dict, preferably as safetensors."
            ) from error
        # Drop the first part of torch's message, which suggests loading the code anyway.
        _, _, found = str(error).rpartition("WeightsUnpickler error: ")
        reason = shortened((found.strip() or repr(error)).splitlines()[0], 120)
        raise UserError(f"{path} is damaged or not a weights file ({reason}).") from error


def _unpacked(path: Path) -> IO[bytes]:
    """Open ``path`` or, if it is an archive of a single file, that file.

    torch's own format is an archive of many files. Raises ValueError for an archive that unpacks
    to many times its size, since it is read into memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size, unpacked = path.stat().st_size, sum(each.file_size for each in archive.infolist())
            if unpacked > MOST_GROWTH * size:
                raise ValueError(f"{size:,} bytes unpack to {unpacked:,}")
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) == 1:
                return io.BytesIO(archive.read(names[0]))
    return path.open("rb")


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(MOST_WRAPPERS):
        if not isinstance(content, dict) or any(map(_is_parameter, content.values())):
            break
        wrappers = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not wrappers:
            break
        if len(wrappers) > 1:
            others = ", ".join(wrappers[1:])
            log.warning("%s: reading '%s' and ignoring %s beside it.", path, wrappers[0], others)
        content = content[wrappers[0]]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} has no named tensors; expected a state dict.")
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise UserError(
                f"{path} is not a state dict: no plain tensor under '{shortened(str(key))}'."
            )
    return content


def _is_parameter(value: Any) -> bool:
    """Whether ``value`` is a tensor other than a random generator's state."""
    return isinstance(value, Tensor) and value.dtype != torch.uint8


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a dense, real tensor in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and not value.is_quantized
        and not value.is_complex()
    )
