"""Weights are found, read and fully matched, or raise an error with a remedy."""

import errno
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lavis_ext.checkpoints.sources import (
    CACHED,
    MISSING,
    TO_FETCH,
    locate,
    resolve,
    settings_beside,
)
from lavis_ext.checkpoints.weights import load_into, read_state_dict
from lavis_ext.common.errors import UserError

KEY = "model.blip.weights"


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # Nothing listens there.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


class Code:
    def __reduce__(self) -> tuple:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.ckpt", "model"])
def test_safetensors_are_read_under_any_name(name: str, tmp_path: Path, tensors: dict) -> None:
    save_file(tensors, tmp_path / name)
    assert torch.equal(read_state_dict(tmp_path / name)["bias"], tensors["bias"])


@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_files_are_read_under_safetensors_name(
    zipped: bool, tmp_path: Path, tensors: dict
) -> None:
    path = tmp_path / "model.safetensors"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_state_dict(path)["bias"], tensors["bias"])


# --- resolve -------------------------------------------------------------------------------------


def test_a_file_and_a_folder_are_found(tmp_path: Path, tensors: dict) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert resolve(str(tmp_path / "pytorch_model.bin"), key=KEY).name == "pytorch_model.bin"
    assert resolve(str(tmp_path), key=KEY).name == "model.safetensors"


@pytest.mark.parametrize("source", ["missing.pt", "/no/such/folder/weights.pth", "a/b/c"])
def test_a_missing_file_is_named_with_its_key(source: str) -> None:
    with pytest.raises(UserError, match=rf"^{KEY}: .*'{source}'"):
        resolve(source, key=KEY)


def test_an_empty_folder_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors, pytorch_model\.bin"):
        resolve(str(tmp_path), key=KEY)


def test_a_url_is_downloaded_once(
    tmp_path: Path, tensors: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    served = tmp_path / "served.pth"
    torch.save(tensors, served)
    calls = []

    class Response:
        def __init__(self, url: str, timeout: float) -> None:
            calls.append(url)
            self.file = served.open("rb")
            self.headers = {"Content-Length": str(served.stat().st_size + self.missing)}

        missing = 0

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def read(self, size: int) -> bytes:
            return self.file.read(size)

    monkeypatch.setattr("urllib.request.urlopen", Response)
    url = "https://example.org/weights/blip.pth?download=1"
    Response.missing = 5
    with pytest.raises(UserError, match=rf"{KEY}: could not download .*the connection ended"):
        resolve(url, key=KEY)
    assert list((tmp_path / "home").rglob("*.pth*")) == []
    Response.missing = 0
    path = resolve(url, key=KEY)
    assert resolve(url, key=KEY) == path
    assert len(calls) == 2
    assert path.is_relative_to(tmp_path / "home")
    assert path.name.endswith("-blip.pth")
    assert torch.equal(read_state_dict(path)["weight"], tensors["weight"])


@pytest.fixture
def at_address(
    tmp_path: Path, tensors: dict, monkeypatch: pytest.MonkeyPatch
) -> Iterator[fsspec.AbstractFileSystem]:
    """A file, a folder and a folder of shards below memory://weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    served = tmp_path / "served"
    (served / "shards").mkdir(parents=True)
    (served / "whole").mkdir()
    _write_shards(served / "shards", tensors)
    save_file(tensors, served / "whole" / "model.safetensors")
    (served / "whole" / "config.json").write_text('{"a": 1}')
    torch.save(tensors, served / "blip.pth")
    memory = fsspec.filesystem("memory")
    memory.put(f"{served}/", "/weights/", recursive=True)
    yield memory
    memory.rm("/weights", recursive=True)


@pytest.mark.parametrize("name", ["blip.pth", "whole", "whole/", "shards"])
def test_files_and_folders_at_an_address_are_downloaded_once(
    name: str, at_address: fsspec.AbstractFileSystem, tensors: dict, tmp_path: Path
) -> None:
    source = f"memory://weights/{name}"
    there = locate(source, key=KEY)
    assert there.state == TO_FETCH
    path = resolve(source, key=KEY)
    assert path.is_relative_to(tmp_path / "home")
    read = read_state_dict(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    if name.startswith("whole"):
        assert settings_beside(path) == {"a": 1}
    at_address.rm("/weights", recursive=True)
    at_address.pipe_file("/weights/other", b"")
    assert resolve(source, key=KEY) == path
    assert locate(source, key=KEY).state == CACHED
    index = path.stat().st_size if name == "shards" else 0
    assert (locate(source, key=KEY).size or 0) - index == there.size


def test_a_download_from_an_address_that_fails_leaves_nothing(
    at_address: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "memory://weights/blip.pth"
    with pytest.raises(UserError, match=rf"{KEY}: {where} has the sha256 \w+, not {'0' * 64}"):
        resolve(f"{where}#sha256={'0' * 64}", key=KEY)
    with pytest.raises(UserError, match=rf"{KEY}: a hash is that of one file"):
        resolve(f"memory://weights/whole#sha256={'0' * 64}", key=KEY)
    for name in ("none.pth", "none"):
        says = rf"{KEY}: could not download memory://weights/{name} \(there .*Set {KEY}"
        with pytest.raises(UserError, match=says):
            resolve(f"memory://weights/{name}", key=KEY)
        assert locate(f"memory://weights/{name}", key=KEY).state == MISSING

    def full(self: object, path: str, target: str) -> None:
        Path(target).write_bytes(b"the first bytes")
        raise OSError(errno.ENOSPC, "No space left on device")

    def short(self: object, path: str, target: str) -> None:
        Path(target).write_bytes(b"the first bytes")

    for get_file, says in ((full, "No space left"), (short, "the connection ended after 15 of")):
        monkeypatch.setattr(type(at_address), "get_file", get_file)
        with pytest.raises(UserError, match=rf"{KEY}: could not download .*{says}"):
            resolve(where, key=KEY)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "source", ["Salesforce/blip-itm-base-coco", "https://example.invalid/efficient_sam.pt"]
)
def test_without_a_network_it_fails_at_once(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"{KEY}: .*{source}.*Set {KEY}") as caught:
        resolve(source, key=KEY)
    assert time.monotonic() - start < 30  # retries would take minutes
    assert str(tmp_path) in str(caught.value)  # where it was looked for


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_hub_name_in_the_cache_needs_no_network(
    sharded: bool, tmp_path: Path, tensors: dict
) -> None:
    repository = tmp_path / "hub" / "models--group--name"
    commit = hashlib.sha1(b"").hexdigest()
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    if sharded:
        _write_shards(snapshot, tensors)
    else:
        save_file(tensors, snapshot / "model.safetensors")
    path = resolve("group/name", key=KEY)
    assert read_state_dict(path).keys() == tensors.keys()


# --- read_state_dict -----------------------------------------------------------------------------


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, file in weight_map.items():
        save_file({name: tensors[name]}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_put_together(tmp_path: Path, tensors: dict) -> None:
    _write_shards(tmp_path, tensors)
    read = read_state_dict(resolve(str(tmp_path), key=KEY))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors"):
        read_state_dict(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_training_checkpoint_is_unwrapped(wrapper: str, tmp_path: Path, tensors: dict) -> None:
    torch.save({wrapper: tensors, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "c.pth")
    assert read_state_dict(tmp_path / "c.pth").keys() == tensors.keys()


def test_a_parameter_called_model_is_not_a_wrapper(tmp_path: Path, tensors: dict) -> None:
    torch.save({"model": tensors["weight"], "bias": tensors["bias"]}, tmp_path / "c.pth")
    assert read_state_dict(tmp_path / "c.pth").keys() == {"model", "bias"}


def test_code_in_a_pickle_is_an_error_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"model": Code()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt holds more than tensors.*run code .*system"):
        read_state_dict(tmp_path / "evil.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02junk", "half"])
def test_damaged_files_are_named(
    suffix: str, content: bytes | str, tmp_path: Path, tensors: dict
) -> None:
    path = tmp_path / f"weights{suffix}"
    if content == "half":
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    assert isinstance(content, bytes)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights{suffix} is damaged"):
        read_state_dict(path)


def test_an_archive_around_one_file_is_read_through(tmp_path: Path) -> None:
    """EfficientSAM-S is published as a zip."""
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "efficient_sam_vits.pt")
    with zipfile.ZipFile(tmp_path / "efficient_sam_vits.pt.zip", "w") as archive:
        archive.write(tmp_path / "efficient_sam_vits.pt", "efficient_sam_vits.pt")
    assert torch.equal(
        read_state_dict(tmp_path / "efficient_sam_vits.pt.zip")["weight"], torch.ones(2)
    )


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"model": {"layers": [1]}}])
def test_files_without_tensors_are_errors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt"):
        read_state_dict(tmp_path / "other.pt")


# --- load_into -----------------------------------------------------------------------------------


def test_a_full_match_is_loaded_and_reported(tensors: dict) -> None:
    module = nn.Linear(3, 2)
    report = load_into(module, tensors, name="Linear")
    assert str(report) == "Linear: 2 of 2 parameters found, 0 missing, 0 unexpected"
    assert torch.equal(module.weight, tensors["weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, r"1 missing: bias.*allow_missing"),
        ({"head.bias": torch.zeros(1)}, r"1 unexpected: head\.bias.*allow_unexpected"),
        (
            {"weight": torch.zeros(4, 3)},
            r"1 of 2 parameters match; 1 of another shape: "
            r"weight \(checkpoint 4x3, model 2x3\)",
        ),
        ({f"x{i}": torch.zeros(1) for i in range(5)}, "5 unexpected: x0, x1, x2 and 2 more"),
    ],
)
def test_a_mismatch_lists_names_and_loads_nothing(
    changes: dict, message: str, tensors: dict
) -> None:
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    state = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        load_into(module, state, name="Linear")
    assert torch.equal(module.weight, before)


def test_patterns_allow_names_but_not_shapes(tensors: dict) -> None:
    module = nn.Linear(3, 2)
    state = {"weight": tensors["weight"], "decoder.a": torch.zeros(1), "decoder.b": torch.zeros(1)}
    report = load_into(
        module,
        state,
        name="Linear",
        allow_missing=["bias"],
        allow_unexpected=["decoder.*", "unused.*"],
    )
    assert str(report) == (
        "Linear: 1 of 2 parameters found, 1 missing, 2 unexpected (allowed: bias, decoder.*)"
    )
    with pytest.raises(UserError, match="another shape"):
        load_into(
            module,
            {**tensors, "bias": torch.zeros(3)},
            name="Linear",
            allow_missing=["*"],
            allow_unexpected=["*"],
        )
