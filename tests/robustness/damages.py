"""Damage to a valid folder, and the arguments of commands that read it."""

import json
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from tests.robustness.wrong_inputs import BEST, QUESTIONS, Damage


def write(path: str, content: Any) -> None:
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data if isinstance(data, bytes) else data.encode())


def writing(path: str, content: Any) -> Damage:
    return partial(write, path, content)


def removing(path: str) -> Damage:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def halving(path: str) -> Damage:
    return lambda: write(path, Path(path).read_bytes()[: Path(path).stat().st_size // 2])


def changing(path: str, change: Callable[[Any], Any]) -> Damage:
    """Change a JSON file's content; a change that returns None works in place."""

    def do() -> None:
        content = json.loads(Path(path).read_text())
        changed = change(content)
        write(path, content if changed is None else changed)

    return do


def each_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    def do(content: dict[str, dict[str, Any]]) -> None:
        for record in content.values():
            change(record)

    return do


def flipping(pattern: str) -> Damage:
    """Flip a bit near the end of the first file that matches."""

    def do() -> None:
        path = sorted(Path.cwd().glob(pattern))[0]
        content = bytearray(path.read_bytes())
        content[-50] ^= 1
        path.write_bytes(content)

    return do


def facts_of_weights(change: Callable[[TrainedWeights], Any]) -> Damage:
    def do() -> None:
        saved = TrainedWeights.load(BEST)
        change(saved)
        saved.save(Path(BEST))

    return do


def torch_file(path: str, content: Any) -> Damage:
    return lambda: torch.save(content, path)


def shards(weight_map: Any) -> Damage:
    return writing("blip/model.safetensors.index.json", {"weight_map": weight_map})


def first_image() -> str:
    return str(sorted(Path("gqa/images").iterdir())[0])


def all_images(change: Callable[[Path], object]) -> Damage:
    def do() -> None:
        for path in Path("gqa/images").iterdir():
            change(path)

    return do


def both(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages]


def zipped(members: dict[str, bytes], name: str = "here/images.zip") -> Damage:
    def do() -> None:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)

    return do


def bomb() -> None:
    """A decompression bomb: a few hundred bytes with more pixels than Pillow's limit."""
    from struct import pack
    from zlib import compress, crc32

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))

    header = pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", compress(b"")), chunk(b"IEND", b""))
    Path("bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def small(*options: str) -> list[str]:
    return ["--cfg-path", "small.yaml", *(["--options", *options] if options else [])]


def mine(*options: str) -> list[str]:
    return ["--cfg-path", "mine.yaml", *(["--options", *options] if options else [])]


def going_on(*options: str) -> list[str]:
    return mine("run.name=before", "run.resume=auto", *options)


def evaluating(*options: str) -> list[str]:
    data = ["datasets.gqa_fusion.root=gqa", "datasets.gqa_fusion.mini_gqa=null"]
    return ["--cfg-path", "eval.yaml", "--options", *data, f"model.fusion_weights={BEST}", *options]


def scoring(**files: str) -> list[str]:
    given = {"questions": QUESTIONS, "predictions": "predictions.json", **files}
    return [f"--{name}={path}" for name, path in given.items()]


SCENES = {"scenes": "gqa/sceneGraphs/val_sceneGraphs.json", "attentions": "maps.json"}
CHOICES = {"choices": "gqa/choices/val_choices.json"}
ALL = "run.small_train_size=null"
