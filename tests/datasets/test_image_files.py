"""Images read where they are: zip, tar, Parquet, addresses; with a cache of bounded size."""

import errno
import io
import os
import pickle
import re
import stat
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.base import PictureDataset
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.image_files import Cache, open_files
from lavis_ext.datasets.image_files import base as image_files
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.datasets.samplers import EvalBatches, Rows
from lavis_ext.datasets.vqa.builder import QuestionTableBuilder
from lavis_ext.features.store import ImageState

COUNT = 12
KINDS = ("zip", "tar", "shards", "parquet", "memory", "zip at an address", "shards at an address")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same images in a folder and elsewhere."""
    root = tmp_path_factory.mktemp("places")
    folder = root / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = {}
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        contents[f"{number}.jpg"] = (folder / f"{number}.jpg").read_bytes()
    with zipfile.ZipFile(root / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(f"images/{name}", content)
        archive.writestr("__MACOSX/images/._1.jpg", b"")
    every = [*contents]
    for tar, names in {"all.tar": every, "s-0.tar": every[::2], "s-1.tar": every[1::2]}.items():
        tarred(root / tar, {name: contents[name] for name in names})
    images = [{"bytes": content, "path": name} for name, content in contents.items()]
    pq.write_table(pa.table({"image": images}), root / "t.parquet", row_group_size=5)
    memory = fsspec.filesystem("memory")
    for name, content in contents.items():
        memory.pipe_file(f"/folder/{name}", content)
    for name in ("i.zip", "s-0.tar", "s-1.tar"):
        memory.pipe_file(f"/files/{name}", (root / name).read_bytes())
    return {
        "folder": folder,
        "zip": root / "i.zip",
        "tar": root / "all.tar",
        "shards": root / "s-*.tar",
        "parquet": root / "t.parquet",
        "memory": "memory://folder",
        "zip at an address": "memory://files/i.zip",
        "shards at an address": "memory://files/s-*.tar",
    }


def tarred(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def png_of(red: int) -> bytes:
    """A lossless picture whose color tells it from others."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


class Pictures(PictureDataset):
    """Each image of a folder as it is."""

    def __init__(self, images: ImageFolder) -> None:
        super().__init__(
            images, lambda image: {"pixels": torch.from_numpy(np.array(image)).permute(2, 0, 1)}
        )

    def __len__(self) -> int:
        return COUNT

    def image_ids(self, rows: Rows) -> list[str]:
        return [str(row) for row in rows]

    ids = image_ids

    def fields(self, rows: Rows, image_index: list[int], epoch: int) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("kind", KINDS)
def test_images_elsewhere_are_those_of_the_folder(kind: str, places: dict[str, Any]) -> None:
    here, there = (ImageFolder(places[each], recursive=True) for each in ("folder", kind))
    assert there.missing(["3", "3.jpg", "12", "../3x", "images/4.png"]) == ["../3x", "12"]
    for name in map(str, range(COUNT)):
        assert pixels(there.read(name)) == pixels(here.read(name))
        assert there.digest(name) == here.digest(name)
    state = ImageState.of("3", there)
    assert state.holds(there)
    assert not ImageState("3", state.size, 0, "another").holds(there)
    with pytest.raises(UserError, match=re.escape(f"{places[kind]}: no image '77'")):
        there.read("77")


@pytest.mark.parametrize("kind", KINDS)
def test_forked_workers_and_pickles_read_at_once_without_mixing_images(
    kind: str, places: dict[str, Any]
) -> None:
    images = ImageFolder(places[kind], recursive=True)
    right = {n: pixels(ImageFolder(places["folder"]).read(n)) for n in map(str, range(COUNT))}
    if "address" not in kind and kind != "memory":
        assert pixels(pickle.loads(pickle.dumps(images)).read("5")) == right["5"]
    images.read("3")  # a handle that is open before the fork
    dataset = Pictures(images)
    batches = [*EvalBatches(dataset.image_codes(), batch_size=1)] * 4
    for samples in Loader(dataset, batches, 2, DataFaultsConfig()):
        (name,) = samples["ids"]
        found = samples["images"]["pixels"][0].permute(1, 2, 0).numpy().tobytes()
        assert found == right[name]


def encrypted(path: Path) -> None:
    zipped(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def zipped(path: Path, name: str = "1.jpg", content: bytes = b"x" * 99) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def cut_off(path: Path) -> None:
    (zipped if path.suffix == ".zip" else partial(tarred, contents={"1.jpg": b"x" * 9999}))(path)
    path.write_bytes(path.read_bytes()[:600] if path.suffix == ".tar" else path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("a.zip", encrypted, "a.zip: the archive is encrypted ('1.jpg'). Unpack it"),
        ("a.zip", cut_off, "a.zip: not a whole zip archive"),
        ("a.zip", lambda path: path.write_bytes(b""), "not a whole zip archive"),
        ("a.tar", cut_off, "a.tar: not a whole tar archive"),
        ("a.tar", lambda path: path.write_bytes(b"PK" * 999), "not a whole tar archive"),
        ("a.tar.gz", lambda path: path.write_bytes(b""), "from a compressed tar archive"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1"), "not a whole Parquet file"),
        (
            "a.parquet",
            lambda path: pq.write_table(pa.table({"n": [1]}), path),
            "images must be in one column of bytes, or one named image; the table has none",
        ),
        ("*.tar", lambda path: None, "no file matches this pattern"),
    ],
)
def test_bad_archives_are_refused_in_a_sentence(
    name: str, make: Any, says: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(says)):
        open_files(tmp_path / name)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("memory://nowhere", "memory://nowhere: there "),
        ("memory://nowhere/a.zip", "there is nothing at this address"),
        ("nonsense://x", "this kind of address can't be read"),
    ],
)
def test_bad_addresses_are_refused_in_a_sentence(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ImageFolder(address)


def test_damaged_members_and_bombs_are_unreadable_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "a.zip")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[38] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip/1\.jpg: the image can't be read"):
        ImageFolder(tmp_path / "a.zip").read("1")
    zipped(tmp_path / "b.zip", content=b"\0" * 10**7)
    assert (tmp_path / "b.zip").stat().st_size < 20_000
    monkeypatch.setattr(image_files, "MOST_BYTES", 10**6)
    with pytest.raises(UserError, match=r"10,000,000 bytes; an image file has at most 1,000,000"):
        ImageFolder(tmp_path / "b.zip").read("1")
    zipped(tmp_path / "c.zip", content=b"")
    assert ImageFolder(tmp_path / "c.zip").missing(["1"]) == ["1"]


def test_names_and_links_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(member)
    names = ["link", "hard", "../secret", "secret"]
    assert ImageFolder(tmp_path / "a.tar", recursive=True).missing(names) == sorted(names)
    zipped(tmp_path / "a.zip", "../secret.jpg")
    assert ImageFolder(tmp_path / "a.zip", recursive=True).missing(["../secret"]) == ["../secret"]


def test_names_are_those_that_unpacking_gives(tmp_path: Path) -> None:
    """Written from ".", by programs of Windows, and twice, where the later member counts."""
    png = {number: png_of(number) for number in range(4)}
    names = {"./images/0.png": 0, "images\\1.png": 1, "2.png": 0}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, number in [*names.items(), ("2.png", 2)]:
            member = zipfile.ZipInfo("?")
            member.filename = name
            archive.writestr(member, png[number])
        link = zipfile.ZipInfo("3.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "2.png")
    images = ImageFolder(tmp_path / "a.zip", recursive=True)
    assert images.missing(["images/0", "images/1", "2", "3"]) == ["3"]
    for number in range(3):
        assert images.read(f"{number}").getpixel((0, 0)) == (number, 0, 0)


@pytest.mark.parametrize("suffix", ["zip", "tar", "parquet"])
def test_an_archive_that_changes_during_a_run_gives_no_other_images(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "BUFFER", 16)  # smaller than these archives

    def write(path: Path, numbers: list[int]) -> None:
        contents = {f"{number}.png": png_of(number) for number in numbers}
        if suffix == "tar":
            tarred(path, contents)
        elif suffix == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in contents.items():
                    archive.writestr(name, content)
        else:
            images = [{"bytes": content, "path": name} for name, content in contents.items()]
            pq.write_table(pa.table({"image": images}), path, row_group_size=1)

    path, other = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    write(path, [1, 2])
    write(other, [2, 1])
    images = ImageFolder(path)
    assert images.read("1").getpixel((0, 0)) == (1, 0, 0)
    before = path.stat()
    other.replace(path)
    assert images.read("2").getpixel((0, 0)) == (2, 0, 0), "the open file is the one of before"
    changed = rf"a\.{suffix}: the image archive has changed during the run"
    with pytest.raises(UserError, match=changed):
        pickle.loads(pickle.dumps(images)).read("1")
    images = ImageFolder(path)
    write(other, [2, 1])
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(0, before.st_mtime_ns + 10**9))
    with pytest.raises(UserError, match=changed):
        images.read("1")


@pytest.mark.parametrize(
    "kind", [pa.binary_view(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_a_table_may_have_any_type_of_bytes(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array([png_of(7), png_of(8)]).cast(kind)
    try:
        pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("this version of pyarrow can't write them")
    images = ImageFolder(tmp_path / "t.parquet", recursive=True)
    assert images.read("t/1").getpixel((0, 0)) == (8, 0, 0)


def test_paths_of_a_table_that_are_no_texts_are_no_names(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": png_of(7), "path": 5}, None]})
    pq.write_table(table, tmp_path / "t.parquet")
    images = ImageFolder(tmp_path / "t.parquet", recursive=True)
    assert [*images] == ["t/0", "t/1"]
    assert images.read("t/0").getpixel((0, 0)) == (7, 0, 0)
    with pytest.raises(UserError, match="the table has no bytes for it"):
        images.read("t/1")


def test_damaged_copies_in_the_cache_are_read_anew(places: dict[str, Any], tmp_path: Path) -> None:
    images = ImageFolder("memory://folder", cache=Cache(tmp_path, 10**6))
    first = pixels(images.read("1"))
    for content in (b"", b"short", b"\0" * 4 + b"another file's bytes"):
        (copy,) = (path for path in tmp_path.rglob("*") if path.is_file())
        copy.write_bytes(content)
        assert pixels(images.read("1")) == first
        assert len(copy.read_bytes()) > 100


def test_a_tar_at_an_address_is_listed_in_few_requests_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarred(tmp_path / "a.tar", {f"{number}.png": png_of(number) for number in range(200)})
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tars/a.tar", (tmp_path / "a.tar").read_bytes())
    requests, read = [], type(memory).cat_file

    def counted(*arguments: Any, **options: Any) -> Any:
        requests.append(options)
        return read(*arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    cache = Cache(tmp_path / "cache", 10**6)
    for most in (2, 0):
        requests.clear()
        images = ImageFolder("memory://tars/a.tar", cache=cache)
        assert len(images) == 200
        assert len(requests) <= most
    assert images.read("77").getpixel((0, 0)) == (77, 0, 0)
    memory.pipe_file("/tars/a.tar", (tmp_path / "a.tar").read_bytes() + bytes(512))
    assert ImageFolder("memory://tars/a.tar", cache=cache).read("9").getpixel((0, 0)) == (9, 0, 0)
    assert len(requests) > 1, "a changed archive is listed anew"


@pytest.mark.parametrize("broken", ["a file in its place", "a full disk"])
def test_a_cache_that_cant_be_written_is_done_without(
    broken: str, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    if broken == "a full disk":

        def full(self: Path, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        folder.write_bytes(b"")
    images = ImageFolder("memory://folder", cache=Cache(folder, 10**6))
    here = ImageFolder(places["folder"])
    for _ in range(2):
        assert pixels(images.read("1")) == pixels(here.read("1"))


def test_the_cache_serves_what_was_read_and_stays_within_its_size(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache", 10**6)
    images = ImageFolder("memory://folder", cache=cache)
    first = pixels(images.read("1"))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", None)
    assert pixels(images.read("1")) == first
    with pytest.raises(UserError):
        images.read("2")
    small = Cache(tmp_path / "small", 16_000)
    for number in range(100):
        assert small.get("0") is not None or number == 0
        small.put(str(number), bytes(900))
        files = [path for path in (tmp_path / "small").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 16_000
        now = number + 1
        for path in files:  # times of a coarse clock
            if path == small._path(str(number)) or path == small._path("0"):
                os.utime(path, (now, now))
    assert small.get("99") is not None
    assert small.get("50") is None, "the least recently used one leaves"


class Ranges(SimpleHTTPRequestHandler):
    """A folder over HTTP with range requests."""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        start, end = int(asked[1]), int(asked[2]) + 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content[start:end])))
        self.end_headers()
        self.wfile.write(content[start:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(places: dict[str, Any]) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    handler = partial(Ranges, directory=str(places["zip"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["images", "i.zip", "i.zip?token=1", "all.tar", "t.parquet"])
def test_images_over_http_are_those_of_the_folder(
    name: str, address: str, places: dict[str, Any], tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", 10**6)
    there = ImageFolder(f"{address}/{name}", recursive=True, cache=cache)
    here = ImageFolder(places["folder"])
    assert there.missing(["3", "12"]) == ["12"]
    there.read("3")
    dataset = Pictures(there)
    batches = EvalBatches(dataset.image_codes(), batch_size=5)
    for samples in Loader(dataset, [*batches], 2, DataFaultsConfig()):
        for image, shown in zip(samples["ids"], samples["images"]["pixels"], strict=True):
            assert shown.permute(1, 2, 0).numpy().tobytes() == pixels(here.read(image))


def test_a_server_without_ranges_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranges, "do_GET", SimpleHTTPRequestHandler.do_GET)
    with pytest.raises(UserError, match="may not support range requests"):
        ImageFolder(f"{address}/i.zip")


def test_a_data_set_takes_its_images_from_an_archive(mini_gqa: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for path in sorted((mini_gqa / "images").iterdir()):
            archive.write(path, f"images/{path.name}")
    found = []
    for images in (None, str(tmp_path / "i.zip")):
        builder = GqaFusionBuilder({"root": str(mini_gqa), "images": images})
        data = builder.build_datasets({"val": None}, image_sizes={"grid": 32})["val"]
        found.append(data[7]["images"]["grid"])
        (need,) = [each for each in builder.needs(["val"]) if each.key.endswith("images")]
        assert not need.missing
    assert torch.equal(*found)
    builder = GqaFusionBuilder({"root": str(mini_gqa), "images": str(tmp_path / "gone.zip")})
    with pytest.raises(UserError, match=r"gone\.zip: there is no such image folder"):
        builder.build_datasets({"val": None}, image_sizes={"grid": 32})


def test_questions_in_a_table_have_the_pictures_beside_them(
    places: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {
            "question": f"what is {n}?",
            "answer": "x",
            "image": {"bytes": (places["folder"] / f"{n}.jpg").read_bytes(), "path": "image.jpg"},
        }
        for n in range(COUNT)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "val.parquet", row_group_size=5)
    builder = QuestionTableBuilder({"root": str(tmp_path), "images": str(tmp_path / "*.parquet")})
    data = builder.build_datasets({"val": None}, image_sizes={"grid": 24})["val"]
    assert data.image_ids(np.array([7])) == ["val/7"]
    shown = pixels(data.images.read("val/7"))
    assert shown == pixels(ImageFolder(places["folder"]).read("7"))
    assert data[7]["images"]["grid"].shape == (1, 3, 24, 24)


def test_paths_that_several_tables_have_are_no_names(
    places: dict[str, Any], tmp_path: Path
) -> None:
    for table, number in (("a", 3), ("b", 4)):
        content = (places["folder"] / f"{number}.jpg").read_bytes()
        image = {"bytes": content, "path": "image.jpg"}
        pq.write_table(pa.table({"image": [image]}), tmp_path / f"{table}.parquet")
    images = ImageFolder(tmp_path / "*.parquet", recursive=True)
    assert images.missing(["image", "a/0", "b/0"]) == ["image"]
    assert pixels(images.read("b/0")) == pixels(ImageFolder(places["folder"]).read("4"))
    for name in ("a.tar", "b.tar"):
        tarred(tmp_path / name, {"1.jpg": b"x"})
    with pytest.raises(UserError, match=r"b\.tar: '1\.jpg' is in .*a\.tar too"):
        ImageFolder(tmp_path / "*.tar")
