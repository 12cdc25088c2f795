"""Reading weights: find the file, read its tensors, put them into a module or refuse.

A checkpoint that only half fits is the most silent of errors, so nothing here is lenient: whatever
does not match has to be named in the config (``allow_missing``, ``allow_unexpected``).
"""

import hashlib
import io
import logging
import pickle
import re
import shutil
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from lavis_ext.errors import UserError, shortened
from lavis_ext.files import parse_json, written_aside

log = logging.getLogger(__name__)

# One attempt of this length tells a missing network from a slow one.
CONNECT_TIMEOUT_SECONDS = 10
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt", ".zip")
PACKAGED = "packaged:"
SHARD_NAME = re.compile(r"\w[\w.-]{0,199}", re.ASCII)
MOST_GROWTH = 10
"""How many times larger than an archive of weights what is in it may be: they hardly shrink."""
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@([\w.-]+))?")
PINS = {"sha256": 64, "gitsha1": 40}
"""Kinds of hashes that pin a file, and their hexadecimal digits."""


def resolve(source: str, *, key: str, filenames: Sequence[str] = WEIGHT_FILES) -> Path:
    """The local file that ``source`` stands for, downloaded first where that is needed.

    ``source`` is one of
    - ``packaged:`` and the path of a file that ships with this package;
    - a file, or a folder as transformers writes it (the first of ``filenames`` in it, or the index
      of its shards);
    - a URL, downloaded once into the ``checkpoints`` folder of torch.hub (``TORCH_HOME``), and
      compared with the hash that it ends in: ``#sha256=...`` or, of a file that lies in a Git
      repository, ``#gitsha1=...``, its blob's name there. Without one the log says so;
    - a name on the Hugging Face hub such as ``Salesforce/blip-itm-base-coco``, with ``@COMMIT`` to
      pin it; the local cache (``HF_HOME``) is looked at first, so that a run without a network
      works after one with it. What is downloaded is compared with the sha256 that the hub names.

    For sharded weights the index file is returned; ``read_state_dict`` reads all its shards.

    Raises UserError that names ``key``, the config key that takes a local path instead.
    """
    if source.startswith(("http://", "https://")):
        return _download(source, key)
    if source.startswith(PACKAGED):
        source = str(Path(__file__).parent / source.removeprefix(PACKAGED))
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, filenames, key)
    named = HUB_NAME.fullmatch(source)
    if named and not source.endswith(FILE_SUFFIXES):
        return _from_hub(named[1], named[2], filenames, key)
    raise UserError(f"{key}: there is no file or folder '{source}' (looked for {path.absolute()}).")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Reads ``.safetensors``, an index of shards (``*.index.json``), or torch's own format with
    pickled code refused. A dict under the top-level key ``model`` or ``state_dict`` is unwrapped
    where nothing beside it is a tensor (optimizer state, epoch, arguments).

    Raises UserError for a file that is damaged, holds code or holds anything but tensors.
    """
    if path.name.endswith(INDEX_SUFFIX):
        tensors: dict[str, Tensor] = {}
        for shard in _shards(path):
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


def _in_folder(folder: Path, filenames: Sequence[str], key: str) -> Path:
    for name in filenames:
        for candidate in (folder / name, folder / (name + INDEX_SUFFIX)):
            if candidate.is_file():
                return candidate
    raise UserError(f"{key}: the folder {folder.absolute()} has none of {', '.join(filenames)}.")


def _shards(index: Path) -> list[str]:
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


def _download(source: str, key: str) -> Path:
    url, _, pin = source.partition("#")
    kind, _, expected = pin.partition("=")
    if pin and not re.fullmatch(rf"[0-9a-f]{{{PINS.get(kind, 0)}}}", expected):
        raise UserError(
            f"{key}: '{pin}' after the address is no hash; it must be sha256= and 64 hexadecimal "
            "digits, or gitsha1= and 40."
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    # Different sites use the same file name for different weights.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{url.split('?')[0].rsplit('/', 1)[-1]}"
    target = folder / name
    if target.is_file():
        if pin:
            _refuse_altered(target, kind, expected, f"{target} (delete it to fetch it anew)", key)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_SECONDS) as response,
            written_aside(target) as aside,
            aside.open("wb") as file,
        ):
            shutil.copyfileobj(response, file, 1 << 20)
            promised = response.headers.get("Content-Length")
            if promised is not None and file.tell() != int(promised):
                raise OSError(f"the connection ended after {file.tell()} of {promised} bytes")
            file.flush()
            if pin:
                _refuse_altered(aside, kind, expected, url, key)
            else:
                log.warning(
                    "%s: no hash is known to compare it with; its sha256 is %s. Put "
                    "#sha256=... after the address to have it compared from now on.",
                    url,
                    _hash_of(aside, "sha256"),
                )
    except (OSError, ValueError, HTTPException) as error:
        raise UserError(
            f"{key}: could not download {url} ({error}), and {target} is not there from an earlier "
            f"download. Give {key} the path of a local copy."
        ) from error
    return target


def _refuse_altered(path: Path, kind: str, expected: str, what: str, key: str) -> None:
    found = _hash_of(path, kind)
    if found != expected:
        raise UserError(
            f"{key}: {what} has the {kind} {found}, not {expected}. It was altered on its way, or "
            f"{key} names the hash of another file."
        )


def _hash_of(path: Path, kind: str) -> str:
    """The sha256 of a file or, of kind ``gitsha1``, the name that Git gives it."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind != "sha256":
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _from_hub(name: str, revision: str | None, filenames: Sequence[str], key: str) -> Path:
    # Takes a quarter of a second, and local weights do without it.
    from huggingface_hub import HfApi, constants, hf_hub_download

    cached = _in_hub_cache(name, revision, filenames)
    if cached is not None:
        return cached
    try:
        # Asked first because this call fails at once without a network, where a download retries.
        info = HfApi().model_info(
            name, revision=revision, timeout=CONNECT_TIMEOUT_SECONDS, files_metadata=True
        )
        present = {sibling.rfilename: sibling.lfs for sibling in info.siblings or []}

        def fetched(filename: str) -> Path:
            path = Path(hf_hub_download(name, filename, revision=revision))
            if stored := present.get(filename):
                try:
                    _refuse_altered(path, "sha256", stored.sha256, f"{name}/{filename}", key)
                except UserError:
                    path.resolve().unlink()  # else it is taken from the cache the next time
                    raise
            return path

        if revision is None:
            log.warning("%s: no revision is pinned; this is %s@%s.", name, name, info.sha)
        for filename in filenames:
            if filename in present:
                return fetched(filename)
            if filename + INDEX_SUFFIX in present:
                index = fetched(filename + INDEX_SUFFIX)
                for shard in _shards(index):
                    fetched(shard)
                return index
    except UserError:
        raise
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{key}: '{name}' is no file or folder here, its {' or '.join(filenames)} is not in "
            f"the cache {constants.HF_HUB_CACHE}, and the Hugging Face hub did not "
            f"give it ({reason[0]}). Give {key} a local path."
        ) from error
    raise UserError(
        f"{key}: '{name}' on the Hugging Face hub has none of {', '.join(filenames)}. "
        f"Give {key} a local path."
    )


def _in_hub_cache(name: str, revision: str | None, filenames: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    def cached(filename: str) -> str | None:
        path = try_to_load_from_cache(name, filename, revision=revision)
        return path if isinstance(path, str) else None

    for filename in filenames:
        if path := cached(filename):
            return Path(path)
        index = cached(filename + INDEX_SUFFIX)
        if index and all(map(cached, _shards(Path(index)))):
            return Path(index)
    return None


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
    """``path`` opened or, of an archive with one file in it, that file (EfficientSAM-S is a zip).

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
