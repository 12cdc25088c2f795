"""Masks of the objects in scene graphs, run-length encoded, in COCO's instance format.

The format is that of https://cocodataset.org/#format-data (Lin et al., ECCV 2014), so COCO's tools
can read mini-GQA, and masks from other sources can be read here. An annotation belongs to the
scene graph's object with its id, in the image whose id is its file's name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as run_lengths

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import check_regular, parse_json, read_plain
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph
from lavis_ext.datasets.pictures import composed

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """Mask of one object as COCO's compressed, column-major run lengths."""

    height: int
    width: int
    counts: bytes

    @classmethod
    def of(cls, mask: Mask) -> "ObjectMask":
        """Encode a mask [H, W]."""
        height, width = mask.shape
        encoded = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
        return cls(height, width, encoded["counts"])

    @property
    def encoded(self) -> dict[str, Any]:
        """Representation used by ``pycocotools.mask``."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def decode(self) -> Mask:
        """Decode to a mask [H, W]."""
        return np.asarray(run_lengths.decode(self.encoded), dtype=bool)


def write_instances(
    path: Path,
    graphs: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, Iterable[ObjectMask]],
    categories: Iterable[str],
) -> None:
    """Write the objects of GQA's scene graphs with their masks by image id."""
    category_ids = {name: number for number, name in enumerate(categories, start=1)}
    images, annotations = [], []
    for image_id, graph in graphs.items():
        images.append(
            {
                "id": int(image_id),
                "file_name": f"{image_id}.jpg",
                "width": graph["width"],
                "height": graph["height"],
            }
        )
        for (object_id, item), mask in zip(graph["objects"].items(), masks[image_id], strict=True):
            annotations.append(
                {
                    "id": int(object_id),
                    "image_id": int(image_id),
                    "category_id": category_ids[item["name"]],
                    "bbox": [item[side] for side in ("x", "y", "w", "h")],
                    "area": int(run_lengths.area(mask.encoded)),
                    "iscrowd": 0,
                    "segmentation": mask.encoded | {"counts": mask.counts.decode("ascii")},
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def read_object_masks(
    root: Path, split: str, graphs: Mapping[str, SceneGraph]
) -> dict[str, tuple[ObjectMask, ...]]:
    """Read the masks of each image's objects, in scene graph order, by image id.

    The file is ``instances/{split}_instances.json`` or, in a mini-GQA of version 1, the pictures
    ``masks/{image id}.png``. Raises UserError naming a file that is missing, damaged or lacks an
    object's mask.
    """
    path = root / "instances" / f"{split}_instances.json"
    if not path.is_file() and (root / "masks").is_dir():
        return {
            image_id: _from_picture(root / "masks" / f"{image_id}.png", len(graph.objects))
            for image_id, graph in graphs.items()
        }
    found = _read_instances(path)
    masks = {}
    for image_id, graph in graphs.items():
        of_image = found.get(image_id, {})
        missing = [item.id for item in graph.objects if item.id not in of_image]
        if missing:
            raise UserError(
                f"{path}: there is no mask of object {missing[0]} of image {image_id}. Create the "
                "file for the scene graphs beside it."
            )
        masks[image_id] = tuple(of_image[item.id] for item in graph.objects)
        size = graph.height, graph.width
        if any((mask.height, mask.width) != size for mask in masks[image_id]):
            raise UserError(
                f"{path}: a mask of image {image_id} doesn't have its scene graph's size, "
                f"{graph.width}x{graph.height} pixels."
            )
    return masks


def _read_instances(path: Path) -> dict[str, dict[str, ObjectMask]]:
    """Read masks by image and annotation id."""
    try:
        content = parse_json(read_plain(path))
    except OSError as error:
        raise UserError(f"{path}: the masks can't be read ({error.strerror}).") from None
    except ValueError as error:
        raise UserError(f"{path}: the masks aren't JSON ({error}).") from None
    try:
        names = {
            image["id"]: composed(Path(image["file_name"]).stem) for image in content["images"]
        }
        masks: dict[str, dict[str, ObjectMask]] = {name: {} for name in names.values()}
        annotations = list(content["annotations"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected instances in COCO's format ({error!r}).") from None
    for annotation in annotations:
        try:
            mask = _object_mask(annotation["segmentation"])
            masks[names[annotation["image_id"]]][str(annotation["id"])] = mask
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            shown = annotation.get("id") if isinstance(annotation, dict) else annotation
            raise UserError(
                f"{path}: annotation {shown!r:.40} has no run-length mask in COCO's format "
                f"({error!r:.120})."
            ) from None
    return masks


def _object_mask(segmentation: Any) -> ObjectMask:
    """Mask of an annotation. Raises ValueError for run lengths that don't fit the image."""
    if not isinstance(segmentation, dict):
        raise ValueError("a polygon; convert it with COCO.annToRLE of pycocotools")
    height, width = segmentation["size"]
    if not all(type(side) is int and 0 < side < 2**15 for side in (height, width)):
        raise ValueError(f"a size of {width}x{height} pixels")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _runs(counts)
    # pycocotools doesn't check run lengths; missing pixels would be arbitrary.
    if any(type(run) is not int or run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run lengths that don't make up {width}x{height} pixels")
    encoded = run_lengths.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return ObjectMask(height, width, encoded["counts"])


def _runs(counts: str) -> list[int]:
    """Parse run lengths from COCO's compressed text: 5 bits per character, lowest first.

    From the fourth on, a number is the difference to the run before the last (pycocotools'
    ``rleFrString``). Raises ValueError for other text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - ord("0")
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"no run lengths: {counts!r:.40}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths that break off")
    return runs


def _from_picture(path: Path, count: int) -> tuple[ObjectMask, ...]:
    """Masks of ``count`` objects from a picture of pixels 0 or 1 + the visible object's index."""
    try:
        check_regular(path)
        with Image.open(path, formats=["PNG"]) as image:
            indexes = np.asarray(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the mask can't be read ({error}).") from None
    return tuple(ObjectMask.of(indexes == index) for index in range(1, count + 1))
