"""Where weights come from: a file, a folder, this package, an address or the Hugging Face hub.

What is downloaded is compared with a hash, where one is known, and the log says where none is.

Addresses are read by urllib: proxies come from the environment, and one timeout holds for the
connection and each read. fsspec would need aiohttp and seven packages besides for the same; see
:mod:`lavis_ext.common.downloads` for the measurement.
"""

import hashlib
import logging
import re
import shutil
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch

from lavis_ext.checkpoints.weights import INDEX_SUFFIX, shards
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import is_file, is_folder, written_aside

log = logging.getLogger(__name__)

# One attempt of this length tells a missing network from a slow one.
CONNECT_TIMEOUT_SECONDS = 10
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt", ".zip")
PACKAGED = "packaged:"
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@([\w.-]+))?")
PINS = {"sha256": 64, "gitsha1": 40}
"""Kinds of hashes that pin a file, and their hexadecimal digits."""


def resolve(
    source: str,
    *,
    key: str,
    filenames: Sequence[str] = WEIGHT_FILES,
    beside: Sequence[str] = (),
) -> Path:
    """The local file that ``source`` stands for, downloaded first where that is needed.

    ``source`` is one of
    - ``packaged:`` and the path of a file that ships with this package;
    - a file, or a folder as transformers writes it (the first of ``filenames`` in it, or the index
      of its shards);
    - a URL, downloaded once into the ``checkpoints`` folder of torch.hub (``TORCH_HOME``), and
      compared with the hash that it ends in: ``#sha256=...`` or, of a file that lies in a Git
      repository, ``#gitsha1=...``, its blob's name there. Without one the log says so;
    - a name on the Hugging Face hub such as ``google-bert/bert-base-uncased``, with ``@COMMIT`` to
      pin it; the local cache (``HF_HOME``) is looked at first, so that a run without a network
      works after one with it. What is downloaded is compared with the sha256 that the hub names.

    Those of the files ``beside`` that the hub has are put next to the one that is returned.

    For sharded weights the index file is returned; ``read_state_dict`` reads all its shards.

    Raises UserError that names ``key``, the config key that takes a local path instead.
    """
    if source.startswith(("http://", "https://")):
        return _download(source, key)
    if source.startswith(PACKAGED):
        source = str(Path(__file__).parents[1] / source.removeprefix(PACKAGED))
    path = Path(source).expanduser()
    if is_file(path):
        return path
    if is_folder(path):
        return _in_folder(path, filenames, key)
    named = HUB_NAME.fullmatch(source)
    if named and not source.endswith(FILE_SUFFIXES):
        return _from_hub(named[1], named[2], filenames, beside, key)
    raise UserError(f"{key}: there is no file or folder '{source}' (looked for {path.absolute()}).")


def _in_folder(folder: Path, filenames: Sequence[str], key: str) -> Path:
    for name in filenames:
        for candidate in (folder / name, folder / (name + INDEX_SUFFIX)):
            if candidate.is_file():
                return candidate
    raise UserError(f"{key}: the folder {folder.absolute()} has none of {', '.join(filenames)}.")


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


def _from_hub(
    name: str, revision: str | None, filenames: Sequence[str], beside: Sequence[str], key: str
) -> Path:
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
        # First, so that where the cache has the file it has those beside it too.
        for filename in beside:
            if filename in present:
                fetched(filename)
        for filename in filenames:
            if filename in present:
                return fetched(filename)
            if filename + INDEX_SUFFIX in present:
                index = fetched(filename + INDEX_SUFFIX)
                for shard in shards(index):
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
        if index and all(map(cached, shards(Path(index)))):
            return Path(index)
    return None
