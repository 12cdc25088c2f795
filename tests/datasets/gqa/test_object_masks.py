"""Object masks in COCO's instance format: written for COCO's tools, and read from others."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.gqa.object_masks import ObjectMask, read_object_masks
from lavis_ext.datasets.gqa.scene_graphs import SceneGraph, read_scene_graphs
from lavis_ext.datasets.mini_gqa import make_mini_gqa

SPLIT = "val"


def graphs_of(root: Path) -> dict[str, SceneGraph]:
    return read_scene_graphs(root / "sceneGraphs" / f"{SPLIT}_sceneGraphs.json")


def decoded(root: Path) -> dict[str, np.ndarray]:
    masks = read_object_masks(root, SPLIT, graphs_of(root))
    return {image: np.stack([mask.decode() for mask in each]) for image, each in masks.items()}


@pytest.fixture
def altered(mini_gqa: Path, tmp_path: Path) -> Path:
    """A folder with mini-GQA's scene graphs and instances that a test may change."""
    for name in ("sceneGraphs", "instances"):
        shutil.copytree(mini_gqa / name, tmp_path / name)
    return tmp_path


def instances(root: Path) -> Path:
    return root / "instances" / f"{SPLIT}_instances.json"


def test_cocos_own_reader_finds_every_object_with_its_mask_box_and_name(mini_gqa: Path) -> None:
    coco = COCO(instances(mini_gqa))
    graphs, masks = graphs_of(mini_gqa), decoded(mini_gqa)
    assert {Path(image["file_name"]).stem for image in coco.imgs.values()} == graphs.keys()
    for image_id, graph in graphs.items():
        image = coco.imgs[int(image_id)]
        assert (mini_gqa / "images" / image["file_name"]).is_file()
        found = coco.loadAnns(coco.getAnnIds(imgIds=[int(image_id)]))
        assert [str(each["id"]) for each in found] == [item.id for item in graph.objects]
        for annotation, item, mask in zip(found, graph.objects, masks[image_id], strict=True):
            assert coco.cats[annotation["category_id"]]["name"] == item.name
            assert tuple(annotation["bbox"]) == item.box
            assert annotation["area"] == mask.sum()
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert coco_mask.toBbox(coco.annToRLE(annotation)).tolist() == list(item.box)


def test_the_pictures_of_earlier_versions_give_the_same_masks(
    mini_gqa: Path, tmp_path: Path
) -> None:
    masks = decoded(mini_gqa)
    shutil.copytree(mini_gqa / "sceneGraphs", tmp_path / "sceneGraphs")
    (tmp_path / "masks").mkdir()
    for image_id, each in masks.items():
        indexes = (each * np.arange(1, len(each) + 1)[:, None, None]).sum(axis=0)
        Image.fromarray(indexes.astype(np.uint8)).save(tmp_path / "masks" / f"{image_id}.png")
    earlier = decoded(tmp_path)
    assert earlier.keys() == masks.keys()
    assert all(np.array_equal(earlier[image_id], masks[image_id]) for image_id in masks)
    (tmp_path / "masks" / f"{image_id}.png").write_bytes(b"")
    with pytest.raises(UserError, match=rf"{image_id}\.png: the mask can't be read"):
        decoded(tmp_path)


def test_a_mini_gqa_of_an_earlier_version_is_kept(tmp_path: Path) -> None:
    make_mini_gqa(tmp_path / "set", images=10)
    metadata = tmp_path / "set" / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"generator_version": 1}))
    assert not make_mini_gqa(tmp_path / "set", images=10).created
    with pytest.raises(UserError, match="images 10 where 12 is wanted"):
        make_mini_gqa(tmp_path / "set", images=12)


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_any_mask_survives_encoding(mask: np.ndarray) -> None:
    assert np.array_equal(ObjectMask.of(mask).decode(), mask)


def test_run_lengths_as_numbers_are_read_too(altered: Path) -> None:
    before = decoded(altered)
    content = json.loads(instances(altered).read_text())
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).T.ravel()
        edges = np.flatnonzero(np.diff(mask, prepend=0)).tolist()
        annotation["segmentation"]["counts"] = np.diff([0, *edges, mask.size]).tolist()
    instances(altered).write_text(json.dumps(content))
    after = decoded(altered)
    assert all(np.array_equal(after[image_id], before[image_id]) for image_id in before)


def without(content: dict[str, Any], *path: Any) -> None:
    for step in path[:-1]:
        content = content[step]
    del content[path[-1]]


FIRST = ("annotations", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: without(c, "images"), "expected instances in COCO's format"),
        (lambda c: without(c, *FIRST, "segmentation"), "annotation .* has no run-length mask"),
        (lambda c: without(c, *FIRST), "there is no mask of object .* of image"),
        (lambda c: c["annotations"][0].update(image_id=-5), "annotation .*KeyError"),
        (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 4, 0, 4, 4]]), "a polygon"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts="0"), "128x128 pixels"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts="o"), "break off"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts="é"), "no run lengths"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts=[-1, 16385]), "make up"),
        (lambda c: c["annotations"][0]["segmentation"].update(counts=[16384.0]), "make up"),
        (lambda c: c["annotations"][0]["segmentation"].update(size=[2**40, 1]), "a size of"),
        (
            lambda c: c["annotations"][0]["segmentation"].update(size=[2, 2], counts=[4]),
            "doesn't have its scene graph's size, 128x128",
        ),
        (lambda c: c["annotations"].insert(0, 7), "annotation 7 has no"),
    ],
)
def test_a_damaged_file_is_an_error_with_path_and_reason(
    altered: Path, change: Any, message: str
) -> None:
    content = copy.deepcopy(json.loads(instances(altered).read_text()))
    change(content)
    instances(altered).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"val_instances\.json: .*{message}"):
        decoded(altered)


def test_a_missing_file_is_named(altered: Path) -> None:
    instances(altered).write_text("{")
    with pytest.raises(UserError, match=r"val_instances\.json: the masks aren't JSON"):
        decoded(altered)
    instances(altered).unlink()
    with pytest.raises(UserError, match=r"val_instances\.json: the masks can't be read"):
        decoded(altered)
