"""Write a mini-GQA data set in the layout and formats of the GQA download."""

import json
import logging
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import entries, parse_json
from lavis_ext.datasets.gqa.object_masks import ObjectMask, write_instances
from lavis_ext.datasets.mini_gqa.balance import select_balanced
from lavis_ext.datasets.mini_gqa.questions import Question, generate_questions
from lavis_ext.datasets.mini_gqa.rendering import render, visible_boxes
from lavis_ext.datasets.mini_gqa.scenes import sample_scene, scene_graph
from lavis_ext.datasets.mini_gqa.vocabulary import SHAPES, WORLDS, World

GENERATOR_VERSION = 2
"""Increased with every change of the files that the same arguments give."""
READABLE_VERSIONS = (1, 2)
"""Version 1 differs only in its masks, pictures ``masks/<imageId>.png``, which are still read."""
SPLITS = ("train", "val", "testdev")
MIN_IMAGES, MAX_IMAGES = 10, 100_000
MIN_SIDE, MAX_SIDE = 96, 1024
METADATA = "metadata.json"
JPEG_OPTIONS: dict[str, Any] = {"quality": 92, "subsampling": 0}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MiniGqaSummary:
    """Contents of a data set.

    Attributes:
        out: folder of the data set.
        created: False if a complete data set of the same arguments existed.
        counts: for each split, the number of ``images``, ``all`` and ``balanced`` questions.
    """

    out: Path
    created: bool
    counts: dict[str, dict[str, int]]


def make_mini_gqa(
    out: Path | str,
    *,
    images: int = 4000,
    seed: int = 0,
    image_size: int | None = None,
    world: str = SHAPES.name,
) -> MiniGqaSummary:
    """Draw scenes with questions and write them to a folder.

    The files are ``questions/{split}_{all,balanced}_questions.json``, ``images/<imageId>.jpg``,
    ``sceneGraphs/{split}_sceneGraphs.json``, ``choices/{split}_choices.json`` (for the GQA
    authors' evaluation), ``instances/{split}_instances.json`` (COCO's format, with the objects'
    masks) and ``metadata.json``. The same arguments give the same bytes.

    The folder is renamed into place when complete. A complete one of the same arguments is kept.

    Args:
        out: folder to write; absent or empty.
        images: number of scenes, a tenth each for ``val`` and ``testdev``.
        seed: seed of scenes, questions and splits.
        image_size: side of the images in pixels; by default the world's.
        world: name of one of ``WORLDS``.

    Raises:
        UserError: the world is unknown, an argument is out of range, or ``out`` can't be written or
            has other files.
    """
    out = Path(out)
    if world not in WORLDS:
        raise UserError(f"mini-GQA: world is {world!r}; it must be one of {', '.join(WORLDS)}.")
    drawn = WORLDS[world]
    image_size = drawn.side if image_size is None else image_size
    for name, value, low, high in (
        ("images", images, MIN_IMAGES, MAX_IMAGES),
        ("seed", seed, 0, 2**32 - 1),
        ("image-size", image_size, MIN_SIDE, MAX_SIDE),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            raise UserError(
                f"mini-GQA: {name} is {value!r}; it must be a whole number from {low} to {high}."
            )
    arguments = {
        "generator": "mini-gqa",
        "generator_version": GENERATOR_VERSION,
        "images": images,
        "seed": seed,
        "image_size": image_size,
        "world": world,
    }
    existing = _existing(out, arguments)
    if existing is not None:
        return existing
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _complete_or_nothing(out) as folder:
            counts = _write(folder, images, seed, image_size, drawn)
            metadata = arguments | {"counts": counts}
            if drawn is SHAPES:  # whose files are older than other worlds
                del metadata["world"]
            (folder / METADATA).write_text(json.dumps(metadata, indent=2))
    except OSError as error:
        # Another process may have finished the same data set meanwhile.
        existing = _existing(out, arguments)
        if existing is not None:
            return existing
        raise UserError(
            f"Cannot write the mini-GQA data set to {out}: {error.strerror or error}. "
            "Name a folder that can be written."
        ) from error
    return MiniGqaSummary(out, True, counts)


def _existing(out: Path, arguments: dict[str, Any]) -> MiniGqaSummary | None:
    """The summary of a complete data set at ``out``; None if the folder is absent or empty.

    Raises UserError for other contents.
    """
    try:
        if not out.exists() or (out.is_dir() and not entries(out)):
            return None
    except OSError as error:
        raise UserError(
            f"Cannot read {out}: {error.strerror}. Name a folder that can be read and written."
        ) from error
    try:
        metadata = parse_json((out / METADATA).read_text())
        found = {key: metadata.get(key) for key in arguments}
        found["world"] = found["world"] or SHAPES.name
        if found["generator_version"] in READABLE_VERSIONS:
            found["generator_version"] = GENERATOR_VERSION
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{out} exists and is no mini-GQA data set. Name another folder, or remove it first."
        ) from None
    if found != arguments:
        differing = ", ".join(
            f"{key} {found[key]} where {arguments[key]} is wanted"
            for key in arguments
            if found[key] != arguments[key]
        )
        raise UserError(
            f"{out} holds another mini-GQA data set ({differing}). "
            "Name another folder, or remove it first."
        )
    return MiniGqaSummary(out, False, metadata["counts"])


@contextmanager
def _complete_or_nothing(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` at the end, or is removed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(
    folder: Path, images: int, seed: int, side: int, world: World
) -> dict[str, dict[str, int]]:
    for name in ("questions", "images", "sceneGraphs", "choices", "instances"):
        (folder / name).mkdir()
    order = list(range(images))
    random.Random(f"{seed} splits").shuffle(order)
    tenth = images // 10
    members = (order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth])
    return {
        split: _write_split(folder, split, sorted(indices), seed, side, world)
        for split, indices in zip(SPLITS, members, strict=True)
    }


def _write_split(
    folder: Path, split: str, indices: list[int], seed: int, side: int, world: World
) -> dict[str, int]:
    graphs: dict[str, Any] = {}
    masks: dict[str, list[ObjectMask]] = {}
    questions: list[Question] = []
    # The balanced subset is known only at the end of the split. Until then records are kept on
    # disk, one a line, because they would take a gigabyte of memory.
    pending = folder / f"{split}.jsonl"
    with pending.open("w") as lines:
        for done, index in enumerate(indices):
            if done % 500 == 0:
                _log.info("%s: %d of %d images", split, done, len(indices))
            scene = sample_scene(random.Random(f"{seed} scene {index}"), index, side, world)
            image, indexes = render(scene, np.random.default_rng([seed, index]))
            Image.fromarray(image).save(folder / "images" / f"{scene.image_id}.jpg", **JPEG_OPTIONS)
            count = len(scene.objects)
            graphs[scene.image_id] = scene_graph(scene, visible_boxes(indexes, count))
            masks[scene.image_id] = [ObjectMask.of(indexes == 1 + n) for n in range(count)]
            for question, record in generate_questions(
                random.Random(f"{seed} questions {index}"), scene
            ):
                questions.append(question)
                lines.write(json.dumps(record) + "\n")

    balanced = select_balanced(
        questions, len(indices), random.Random(f"{seed} balance {split}"), world
    )
    with pending.open() as lines:
        _write_questions(folder / "questions", split, zip(questions, lines, strict=True), balanced)
    pending.unlink()
    with _JsonObject(folder / "choices" / f"{split}_choices.json") as choices:
        for question in questions:
            answers = {"valid": question.valid, "plausible": question.plausible}
            choices.add(question.id, json.dumps(answers))
    (folder / "sceneGraphs" / f"{split}_sceneGraphs.json").write_text(json.dumps(graphs))
    instances = folder / "instances" / f"{split}_instances.json"
    write_instances(instances, graphs, masks, world.category_of)
    return {"images": len(indices), "all": len(questions), "balanced": len(balanced)}


def _write_questions(
    folder: Path, split: str, records: Iterable[tuple[Question, str]], balanced: set[str]
) -> None:
    with (
        _JsonObject(folder / f"{split}_all_questions.json") as all_questions,
        _JsonObject(folder / f"{split}_balanced_questions.json") as balanced_questions,
    ):
        for question, line in records:
            text = line.rstrip("\n")
            if question.id in balanced:
                text = text.replace('"isBalanced": false', '"isBalanced": true', 1)
                balanced_questions.add(question.id, text)
            all_questions.add(question.id, text)


class _JsonObject:
    """Writes a JSON object member by member, one a line, without keeping it in memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._separator = "{"

    def add(self, key: str, text: str) -> None:
        """Write the member ``key`` with a value in JSON."""
        self._file.write(f"{self._separator}{json.dumps(key)}: {text}")
        self._separator = ",\n"

    def __enter__(self) -> "_JsonObject":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.write("{}" if self._separator == "{" else "}")
        self._file.close()
