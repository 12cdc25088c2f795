"""Sources of weights: a file, a folder, a package, an address or the Hugging Face hub.

Downloads are verified against a hash if one is known; otherwise the log has a warning.

Over HTTP they are made by urllib: proxies come from the environment, and one timeout holds for the
connection and each read. fsspec, which reads other addresses, would need aiohttp and seven packages
besides for the same; see :mod:`lavis_ext.common.downloads` for the measurement.
"""

import hashlib
import importlib.util
import logging
import re
import shutil
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from lavis_ext.checkpoints.weights import INDEX_SUFFIX, shards
from lavis_ext.common.addresses import Address, RemoteFile, is_address
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import is_file, is_folder, required_object, written_aside

log = logging.getLogger(__name__)

# Long enough for a slow network, and short enough when there is none.
CONNECT_TIMEOUT_SECONDS = 10
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt", ".zip")
SETTINGS = ("config.json",)
BESIDE = {
    **dict.fromkeys(WEIGHT_FILES, SETTINGS),
    "spiece.model": ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
}
"""Files that are downloaded next to a file if there are any, as both are read together."""
PACKAGED = "packaged:"
INSTALLED = "installed:"
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@([\w.-]+))?")
PINS = {"sha256": 64, "gitsha1": 40}
"""Hash types that can pin a file, with their number of hexadecimal digits."""


def resolve(source: str, *, key: str, filenames: Sequence[str] = WEIGHT_FILES) -> Path:
    """The local file behind ``source``, downloaded if necessary.

    ``source`` is one of
    - ``packaged:`` and the path of a file in this package;
    - ``installed:`` and the path of a file or folder in another installed package, beginning with
      the name that Python imports it by; its code is not run;
    - a file, or a folder saved by transformers (the first of ``filenames`` in it, or the index of
    its shards);
    - an address (``https://``, ``s3://`` and others of fsspec), downloaded once into the
    ``checkpoints`` folder of torch.hub (``TORCH_HOME``) and verified against the hash at its end:
    ``#sha256=...`` or, for a file in a Git repository, ``#gitsha1=...``, its blob's name. Without a
    hash a warning is logged. Except over HTTP it may also be that of a folder as above;
    - a name on the Hugging Face hub such as ``google-bert/bert-base-uncased``, with ``@COMMIT`` to
      pin it. The local cache (``HF_HOME``) is tried first, so later runs need no network. Downloads
      are verified against the hub's sha256.

    For sharded weights the result is the index file; ``read_state_dict`` reads all its shards.

    Raises UserError naming ``key``, the config key that accepts a local path instead.
    """
    if is_address(source):
        return _from_address(source, filenames, key)
    if source.startswith(PACKAGED):
        source = str(Path(__file__).parents[1] / source.removeprefix(PACKAGED))
    elif source.startswith(INSTALLED):
        source = str(_in_package(source.removeprefix(INSTALLED), key))
    path = Path(source).expanduser()
    if is_file(path):
        return path
    if is_folder(path):
        return _in_folder(path, filenames, key)
    named = HUB_NAME.fullmatch(source)
    if named and is_hub_name(source):
        return _from_hub(named[1], named[2], filenames, key)
    raise UserError(f"{key}: there is no file or folder '{source}' (looked for {path.absolute()}).")


def _in_package(source: str, key: str) -> Path:
    """The place of ``PACKAGE/PATH`` on this machine. Raises UserError if there is none."""
    package, _, inside = source.partition("/")
    if not package.isidentifier() or not inside:
        raise UserError(
            f"{key}: '{shortened(source)}' must be the name of a package, a slash and a path in it."
        )
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise UserError(
            f"{key}: the package '{shortened(package)}' is not installed. Install it with pip "
            f"install {shortened(package.replace('_', '-'))}."
        )
    for folder in folders:
        if (found := Path(folder, inside)).exists():
            return found
    raise UserError(
        f"{key}: the installed package '{package}' has no {inside} (looked in "
        f"{', '.join(folders)}); it may be of another version."
    )


def is_hub_name(source: str) -> bool:
    """Whether ``resolve`` looks for ``source`` on the hub, as there is no such file or folder."""
    path = Path(source).expanduser()
    named = HUB_NAME.fullmatch(source) and not source.endswith(FILE_SUFFIXES)
    return bool(named) and not is_file(path) and not is_folder(path)


def settings_beside(weights: Path) -> dict[str, Any] | None:
    """The network's settings from ``config.json`` beside weights saved by transformers.

    None if there is no such file. Raises UserError if it isn't a JSON object.
    """
    path = weights.parent / "config.json"
    if weights.name.removesuffix(INDEX_SUFFIX) not in WEIGHT_FILES or not path.is_file():
        return None
    return required_object(path)


@dataclass(frozen=True)
class Located:
    """Location of a file that ``resolve`` would return, determined without a download.

    Attributes:
        state: one of FOUND, CACHED, TO_FETCH and MISSING.
        place: path, URL of a file to download, or the reason why it is missing.
        size: size in bytes; None if unknown.
    """

    state: str
    place: str
    size: int | None = None


HTTP = ("http://", "https://")
NO_ANSWER = (UserError, OSError, ValueError, HTTPException)
"""Errors of addresses."""
NO_HEAD = (403, 405, 501)
"""HTTP status codes of servers that have a file but reject HEAD requests."""
FOUND, CACHED, TO_FETCH, MISSING = "found", "cached", "to fetch", "missing"


class Asked:
    """Answers of the network. Each URL and each model of the hub is asked about once."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str | None], Any] = {}

    def size_of(self, url: str) -> int | None:
        """Size of a remote file in bytes, None if the server doesn't tell. Raises what urllib does.

        Servers that reject HEAD requests count as having the file.
        """
        size: int | None = self._once((url, None), lambda: _size_of(url))
        return size

    def at(self, address: str) -> RemoteFile | dict[str, RemoteFile]:
        """The file at an address of fsspec, or the files of a folder. Raises UserError for none."""
        found: RemoteFile | dict[str, RemoteFile]
        found = self._once((address, None), lambda: _at(Address(address)))
        return found

    def files_of(self, name: str, revision: str | None) -> dict[str, int | None]:
        """Sizes in bytes by file of a model on the hub. Raises what the hub's client does."""
        sizes: dict[str, int | None] = self._once(
            (name, revision or ""), lambda: _sizes_on_hub(name, revision)
        )
        return sizes

    def _once(self, place: tuple[str, str | None], ask: Callable[[], Any]) -> Any:
        """The answer, or the same error again."""
        if place not in self._answers:
            try:
                self._answers[place] = ask()
            except Exception as error:  # the hub's client raises a dozen unrelated types
                self._answers[place] = error
        if isinstance(self._answers[place], Exception):
            raise self._answers[place]
        return self._answers[place]


def locate(
    source: str,
    *,
    key: str,
    filenames: Sequence[str] = WEIGHT_FILES,
    asked: Asked | None = None,
) -> Located:
    """Locate the file that ``resolve`` would return. Uses the network only for remote files.

    ``asked`` has earlier answers of the network, for sources of several keys.
    """
    asked = asked or Asked()
    try:
        if here := _on_this_machine(source, filenames, key):
            return here
        if is_address(source):
            return _remote(source, filenames, key, asked)
        named = HUB_NAME.fullmatch(source)
        assert named, "any other source is a path"
        return _on_hub(named[1], named[2], filenames, key, asked)
    except UserError as error:
        return Located(MISSING, str(error).removeprefix(f"{key}: "))


def on_this_machine(source: str, filenames: Sequence[str] = WEIGHT_FILES) -> bool:
    """Whether ``resolve`` finds the file without a network."""
    try:
        return _on_this_machine(source, filenames, "") is not None
    except UserError:
        return False


def _on_this_machine(source: str, filenames: Sequence[str], key: str) -> Located | None:
    """A local or cached file; None for one to be downloaded. Raises UserError if there is none."""
    if is_address(source):
        _pin_of(source, key)
        here = _in_address_cache(source, filenames)
        return _here(CACHED, here) if here else None
    named = HUB_NAME.fullmatch(source)
    if source.startswith(PACKAGED) or not named or not is_hub_name(source):
        return _here(FOUND, resolve(source, key=key, filenames=filenames))
    cached = _in_hub_cache(named[1], named[2], filenames)
    return _here(CACHED, cached) if cached else None


def _here(state: str, path: Path) -> Located:
    files = [path]
    if path.name.endswith(INDEX_SUFFIX):
        files += [path.parent / shard for shard in shards(path)]
    try:
        return Located(state, str(path), sum(each.stat().st_size for each in files))
    except OSError as error:
        raise UserError(f"There is no weights file {error.filename}.") from None


def _remote(source: str, filenames: Sequence[str], key: str, asked: Asked) -> Located:
    url = source.partition("#")[0]
    try:
        if url.startswith(HTTP):
            return Located(TO_FETCH, url, asked.size_of(url))
        found = asked.at(url)
    except NO_ANSWER as error:
        raise _no_download(url, _cache_of(source), key, error) from None
    if isinstance(found, RemoteFile):
        return Located(TO_FETCH, url, found.size)
    sizes = {name: file.size for name, file in found.items()}
    return _first_located(sizes, url, url.rstrip("/"), filenames, key)


def _size_of(url: str) -> int | None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_SECONDS) as response:
            size = response.headers.get("Content-Length")
    except OSError as error:
        if getattr(error, "code", None) in NO_HEAD:
            return None
        raise
    return int(size) if size else None


def _sizes_on_hub(name: str, revision: str | None) -> dict[str, int | None]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(
        name, revision=revision, timeout=CONNECT_TIMEOUT_SECONDS, files_metadata=True
    )
    return {each.rfilename: each.size for each in info.siblings or []}


def _on_hub(
    name: str, revision: str | None, filenames: Sequence[str], key: str, asked: Asked
) -> Located:
    try:
        sizes = asked.files_of(name, revision)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise _no_answer(name, filenames, key, error) from None
    located = _first_located(sizes, f"'{name}' on the Hugging Face hub", name, filenames, key)
    return replace(located, place=f"{located.place} on the hub")


def _first_located(
    sizes: Mapping[str, int | None],
    what: str,
    place: str,
    filenames: Sequence[str],
    key: str,
) -> Located:
    """The first of ``filenames`` in a remote folder with files of these sizes, or its shards."""
    for filename in filenames:
        if filename in sizes:
            return Located(TO_FETCH, f"{place}/{filename}", sizes[filename])
        if filename + INDEX_SUFFIX in sizes:
            stem, suffix = Path(filename).stem, Path(filename).suffix
            parts = [n for n in sizes if n.startswith(f"{stem}-") and n.endswith(suffix)]
            size = sum(sizes[part] or 0 for part in parts)
            return Located(TO_FETCH, f"{place}/{filename}, {len(parts)} shards", size)
    raise _none_of(what, filenames, key)


def _cache_of(source: str) -> Path:
    """Cache path of an address's download. A hash tells equal names of different sites apart."""
    url = source.partition("#")[0]
    last = url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{last}"
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _in_address_cache(source: str, filenames: Sequence[str]) -> Path | None:
    """The downloaded file of an address, or that of ``filenames`` in a downloaded folder."""
    target = _cache_of(source)
    if target.is_file():
        return target
    for path in (target / name for name in filenames):
        if path.is_file():
            return path
        index = path.with_name(path.name + INDEX_SUFFIX)
        if index.is_file() and all((target / shard).is_file() for shard in shards(index)):
            return index
    return None


def _in_folder(folder: Path, filenames: Sequence[str], key: str) -> Path:
    for name in filenames:
        for candidate in (folder / name, folder / (name + INDEX_SUFFIX)):
            if candidate.is_file():
                return candidate
    raise UserError(f"{key}: the folder {folder.absolute()} has none of {', '.join(filenames)}.")


def _from_address(source: str, filenames: Sequence[str], key: str) -> Path:
    url = source.partition("#")[0]
    kind, expected = pin = _pin_of(source, key)
    target = _cache_of(source)
    if cached := _in_address_cache(source, filenames):
        if expected:
            _check_hash(cached, kind, expected, f"{cached} (delete it to download it again)", key)
        return cached
    try:
        if url.startswith(HTTP):
            return _download(url, target, pin, key, lambda aside: _write_response(url, aside))
        address = Address(url)
        found = _at(address)
        if isinstance(found, RemoteFile):
            return _download(url, target, pin, key, partial(address.copy, found))
        if expected:
            raise UserError(f"{key}: a hash is that of one file, and {url} is a folder.")

        log.warning("%s: files of a folder can't be verified by a hash.", url)

        def fetched(name: str) -> Path:
            where, path = f"{url.rstrip('/')}/{name}", target / name
            write = partial(address.copy, found[name])
            return path if path.is_file() else _download(where, path, None, key, write)

        return _first_fetched(found, url, filenames, fetched, key)
    except NO_ANSWER as error:
        raise _no_download(url, target, key, error) from error


def _at(address: Address) -> RemoteFile | dict[str, RemoteFile]:
    return address.file() or address.files()


def _write_response(url: str, path: Path) -> None:
    with (
        urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_SECONDS) as response,
        path.open("wb") as file,
    ):
        shutil.copyfileobj(response, file, 1 << 20)
        promised = response.headers.get("Content-Length")
        if promised is not None and file.tell() != int(promised):
            raise OSError(f"the connection ended after {file.tell()} of {promised} bytes")


def _download(
    url: str, target: Path, pin: tuple[str, str] | None, key: str, write: Callable[[Path], None]
) -> Path:
    """Let ``write`` write a file, verify it by its hash and rename it to ``target``.

    Without digits in ``pin``, the log has those that the file has.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(target) as aside:
        write(aside)
        kind, expected = pin or ("", "")
        if expected:
            _check_hash(aside, kind, expected, url, key)
        elif pin:
            log.warning(
                "%s: no hash to verify it; its sha256 is %s. Append #sha256=... to the address to "
                "verify it from now on.",
                url,
                _hash_of(aside, "sha256"),
            )
    return target


def _pin_of(source: str, key: str) -> tuple[str, str]:
    """Type and digits of the hash at the end of a URL; empty without one."""
    pin = source.partition("#")[2]
    kind, _, expected = pin.partition("=")
    if pin and not re.fullmatch(rf"[0-9a-f]{{{PINS.get(kind, 0)}}}", expected):
        raise UserError(
            f"{key}: '{pin}' at the end of the address is not a hash; it must be sha256= with 64 "
            "hexadecimal digits, or gitsha1= with 40."
        )
    return kind, expected


def _no_download(url: str, target: Path, key: str, error: Exception) -> UserError:
    if isinstance(error, UserError) and str(error).startswith(f"{key}: "):
        return error
    reason = str(error).removeprefix(f"{url.rstrip('/')}: ").rstrip(".")
    return UserError(
        f"{key}: could not download {url} ({reason}), and there is no earlier download "
        f"{target}. Set {key} to the path of a local copy."
    )


def _check_hash(path: Path, kind: str, expected: str, what: str, key: str) -> None:
    found = _hash_of(path, kind)
    if found != expected:
        raise UserError(
            f"{key}: {what} has the {kind} {found}, not {expected}. The download was altered, or "
            f"{key} has another file's hash."
        )


def _hash_of(path: Path, kind: str) -> str:
    """Hexadecimal sha256 of a file or, for ``gitsha1``, its name as a Git blob."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind != "sha256":
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _from_hub(name: str, revision: str | None, filenames: Sequence[str], key: str) -> Path:
    # Imported here: it takes 0.25 s, and local weights don't need it.
    from huggingface_hub import HfApi, hf_hub_download

    cached = _in_hub_cache(name, revision, filenames)
    if cached is not None:
        return cached
    try:
        # First, because without a network this call fails immediately, while downloads retry.
        info = HfApi().model_info(
            name, revision=revision, timeout=CONNECT_TIMEOUT_SECONDS, files_metadata=True
        )
        present = {sibling.rfilename: sibling.lfs for sibling in info.siblings or []}

        def fetched(filename: str) -> Path:
            path = Path(hf_hub_download(name, filename, revision=revision))
            if stored := present.get(filename):
                try:
                    _check_hash(path, "sha256", stored.sha256, f"{name}/{filename}", key)
                except UserError:
                    path.resolve().unlink()  # else the next call would find it in the cache
                    raise
            return path

        if revision is None:
            log.warning("%s: no revision is pinned; this is %s@%s.", name, name, info.sha)
        return _first_fetched(present, f"'{name}' on the Hugging Face hub", filenames, fetched, key)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise _no_answer(name, filenames, key, error) from error


def _first_fetched(
    present: Mapping[str, Any],
    what: str,
    filenames: Sequence[str],
    fetched: Callable[[str], Path],
    key: str,
) -> Path:
    """Fetch the first of ``filenames`` that is present, or its index and shards."""
    for filename in filenames:
        index = filename + INDEX_SUFFIX
        if filename not in present and index not in present:
            continue
        # Before the file itself, so that a cached file always has them beside it.
        for other in BESIDE.get(filename, ()):
            if other in present:
                fetched(other)
        if filename in present:
            return fetched(filename)
        path = fetched(index)
        for shard in shards(path):
            fetched(shard)
        return path
    raise _none_of(what, filenames, key)


def _no_answer(name: str, filenames: Sequence[str], key: str, error: Exception) -> UserError:
    from huggingface_hub import constants

    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"{key}: '{name}' is not a local file or folder, its {' or '.join(filenames)} is not "
        f"in the cache {constants.HF_HUB_CACHE}, and the Hugging Face hub did not provide it "
        f"({reason[0]}). Set {key} to a local path."
    )


def _none_of(what: str, filenames: Sequence[str], key: str) -> UserError:
    return UserError(
        f"{key}: {what} has none of {', '.join(filenames)}. Set {key} to a local path."
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
