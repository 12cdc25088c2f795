"""Images a second from a folder, and from where else they may be.

python -m benchmarks.image_files OUT                    # 400 images of 500x375, under a minute

Draws JPEG files of the size of GQA's, packs them as zip, as two tar shards and as Parquet (row
groups of 100, the hub's default, and of 10), and puts them into fsspec's memory file system, with a
local cache, and serves the folder over HTTP by this process, without a cache. Reads all images in
random order in this process, each way in turn, and prints CPU milliseconds and images a second:
decoded, as training reads them, and the bytes alone. Then opens a zip of as many tiny images as
GQA's archive has.
"""

import argparse
import io
import json
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lavis_ext.common.files import written_aside
from lavis_ext.datasets.image_files import Cache
from lavis_ext.datasets.pictures import ImageFolder

SIZE = (500, 375)
GQA = 148_854
"""Images in GQA's archive."""
SMALLEST = 24
"""Side of the noise that is enlarged to an image, for files as large as a photograph's."""


def drawn(count: int) -> dict[str, bytes]:
    """JPEG files by name."""
    rng = np.random.default_rng(0)
    contents = {}
    for number in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (SMALLEST, SMALLEST, 3), dtype=np.uint8))
        file = io.BytesIO()
        noise.resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
        contents[f"{number}.jpg"] = file.getvalue()
    return contents


def packed(contents: dict[str, bytes], out: Path) -> dict[str, ImageFolder]:
    """The same images each way."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    memory = fsspec.filesystem("memory")
    with (
        zipfile.ZipFile(out / "images.zip", "w") as zipped,
        tarfile.open(out / "shard-0.tar", "w") as first,
        tarfile.open(out / "shard-1.tar", "w") as second,
    ):
        for number, (name, content) in enumerate(contents.items()):
            (out / "images" / name).write_bytes(content)
            memory.pipe_file(f"/images/{name}", content)
            zipped.writestr(name, content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            (second if number % 2 else first).addfile(member, io.BytesIO(content))
    images = [{"bytes": content, "path": name} for name, content in contents.items()]
    places: dict[str, Path | str] = {
        "folder": out / "images",
        "zip": out / "images.zip",
        "tar, 2 shards": out / "shard-*.tar",
    }
    for rows in (100, 10):
        path = out / f"groups_of_{rows}.parquet"
        pq.write_table(pa.table({"image": images}), path, row_group_size=rows)
        places[f"Parquet, row groups of {rows}"] = path
    found = {name: ImageFolder(place) for name, place in places.items()}
    cache = Cache(out / "cache", 10**10)
    return found | {"address, from the cache": ImageFolder("memory://images", cache=cache)}


def seconds(read: Callable[[str], object], names: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of reading these images."""
    wall, processor = time.perf_counter(), time.process_time()
    for name in names:
        read(name)
    return time.perf_counter() - wall, time.process_time() - processor


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Context manager with the address of a folder, served by a thread."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def measured(out: Path, count: int) -> dict[str, dict[str, float]]:
    """Rates of each way, after one pass that fills the system's file cache and ours."""
    names = [*map(str, np.random.default_rng(1).permutation(count))]
    report = {}
    with served(out / "images") as address:
        ways = packed(drawn(count), out)
        if find_spec("aiohttp"):
            ways["http, not cached"] = ImageFolder(address)
        for how, images in ways.items():
            for name in names:
                images.digest(name)
            decoded, processor = seconds(images.read, names)
            bytes_alone, _ = seconds(images.digest, names)
            report[how] = {
                "images_a_second": round(len(names) / decoded),
                "cpu_ms_an_image": round(1000 * processor / len(names), 2),
                "bytes_alone_images_a_second": round(len(names) / bytes_alone),
            }
    return report


def opening(out: Path, count: int) -> dict[str, float]:
    """CPU seconds and MiB of memory that opening a zip of so many images takes."""
    path, file = out / f"{count}_images.zip", io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    if not path.exists():
        with written_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
            for number in range(count):
                archive.writestr(f"images/{number}.jpg", file.getvalue())
    tracemalloc.start()
    images = ImageFolder(path, recursive=True)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    processor = time.process_time()
    ImageFolder(path, recursive=True)
    seconds = time.process_time() - processor
    return {"images": len(images), "cpu_seconds": round(seconds, 2), "mib": round(used / 2**20)}


def main() -> None:
    """Measure each way."""
    parser = argparse.ArgumentParser(description="Images a second from archives and tables.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    report = measured(options.out, options.images)
    print(json.dumps({**report, "opening": opening(options.out, GQA)}, indent=1))


if __name__ == "__main__":
    main()
