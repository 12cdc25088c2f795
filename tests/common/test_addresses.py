"""Images, weights and features at s3:// addresses, on an object server of this machine."""

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lavis_ext.checkpoints.sources import CACHED, MISSING, TO_FETCH, locate, resolve
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.image_files import Cache
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import EvalBatches
from tests.datasets.test_image_files import Pictures, places
from tests.features.test_features import Run

__all__ = ["places"]

KEY = "model.fusion_weights"


@pytest.fixture(scope="module")
def settings() -> Iterator[None]:
    """Those of an object server of this machine, with the bucket ``here``."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]: pip install '.[s3]' moto")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install '.[s3]'")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": host,
        }.items():
            patched.setenv(name, value)
        s3fs.S3FileSystem().mkdir("here")
        yield
    running.stop()


@pytest.fixture
def s3(settings: None) -> Iterator[Any]:
    """s3fs's file system, whose settings a test may change."""
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    yield kind()
    kind.clear_instance_cache()


@pytest.mark.parametrize("name", ["images", "i.zip", "s-*.tar", "t.parquet"])
def test_images_at_s3_are_those_of_the_folder(
    name: str, s3: Any, places: dict[str, Any], tmp_path: Path
) -> None:
    for path in places["zip"].parent.glob(name):
        s3.put(str(path), f"here/{path.name}", recursive=True)
    cache = Cache(tmp_path / "cache", 10**6)
    there = ImageFolder(f"s3://here/{name}", recursive=True, cache=cache)
    here = ImageFolder(places["folder"])
    assert there.missing(["3", "12"]) == ["12"]
    dataset = Pictures(there)
    batches = EvalBatches(dataset.image_codes(), batch_size=5)
    for samples in Loader(dataset, [*batches], 2, DataFaultsConfig()):
        for image, shown in zip(samples["ids"], samples["images"]["pixels"], strict=True):
            pixels = shown.permute(1, 2, 0).numpy()
            assert Image.fromarray(pixels).tobytes() == here.read(image).tobytes()


def test_weights_at_s3_are_files_or_folders_in_the_cache(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    s3.put(str(tmp_path / "model.safetensors"), "here/w/")
    s3.pipe_file("here/w/config.json", b"{}")
    where = "s3://here/w"
    for source in (f"{where}/model.safetensors", where):
        there = locate(source, key=KEY)
        size = (tmp_path / "model.safetensors").stat().st_size
        assert (there.state, there.size) == (TO_FETCH, size)
        path = resolve(source, key=KEY)
        assert path.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
        assert path.is_relative_to(tmp_path / "torch")
        assert locate(source, key=KEY).state == CACHED
    assert (path.parent / "config.json").read_text() == "{}"


def test_what_is_missing_at_s3_is_named_with_its_key(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for where in ("s3://here/none.pth", "s3://nobucket/none.pth"):
        says = rf"^{KEY}: could not download {where} \(there is nothing at this address\)"
        with pytest.raises(UserError, match=says):
            resolve(where, key=KEY)
        assert locate(where, key=KEY).state == MISSING


@pytest.fixture
def guarded(s3: Any) -> Iterator[None]:
    """The server checks rights."""
    where = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    plain = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(where, b"0", plain)).close()
    yield
    urllib.request.urlopen(urllib.request.Request(where, b"inf", plain)).close()


def test_no_rights_no_credentials_and_no_network_are_said(
    guarded: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fails(says: str) -> None:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        for ask in (
            lambda: resolve("s3://here/w.pth", key=KEY),
            lambda: ImageFolder("s3://here/i.zip"),
        ):
            with pytest.raises(UserError, match=rf"s3://here/.*{says}"):
                ask()

    fails(r"the server refuses access: .*Check the credentials and their rights")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fails("can't be read: Could not connect to the endpoint")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fails("can't be read: .*credentials")


def test_features_at_s3_are_copied(s3: Any, tmp_path: Path, mini_gqa: Path) -> None:
    run = Run(tmp_path / "features", mini_gqa)
    run.features().make(torch.device("cpu"), 0)
    s3.put(str(run.root), "here/features", recursive=True)
    features = run.features(root="s3://here/features", cache=str(tmp_path / "cache"))
    features.use(torch.device("cpu"), 0)
    (copies,) = (tmp_path / "cache").iterdir()
    assert Run(copies, mini_gqa).contents() == run.contents()
