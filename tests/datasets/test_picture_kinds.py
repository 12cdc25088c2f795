"""All kinds of pictures, in all readers, are upright, with 8 bits and without clipping."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw
from torchvision.transforms.v2.functional import pil_to_tensor

from lavis_ext.ask import command, inputs
from lavis_ext.common.errors import UserError
from lavis_ext.datasets.base import PictureDataset
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.pictures import TURNS, ImageFolder
from lavis_ext.evaluation.report.thumbnails import thumbnails
from lavis_ext.features.extraction import _Pictures
from lavis_ext.pretraining.mask_data import MaskDataset

Pixels = npt.NDArray[np.uint8]
Write = Callable[[Path], object]
SIZE = (48, 32)
QUARTERS = {Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}
BACK = {
    turn: turn if turn not in QUARTERS else (QUARTERS - {turn}).pop() for turn in TURNS.values()
}
"""What undoes a turn."""


def color() -> Image.Image:
    """A picture without any symmetry."""
    image = Image.new("RGB", SIZE, (0, 0, 128))
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, 15, 15], fill=(255, 0, 0))
    draw.rectangle([32, 0, 47, 15], fill=(255, 255, 0))
    draw.rectangle([0, 16, 15, 31], fill=(0, 160, 0))
    return image


def gray() -> Image.Image:
    return color().convert("L")


def half_clear(image: Image.Image) -> Image.Image:
    """A picture whose right half is transparent, with black as its color."""
    image = image.copy()
    image.paste(0 if image.mode == "L" else (0, 0, 0), (24, 0, *SIZE))
    alpha = Image.new("L", SIZE, 255)
    alpha.paste(0, (24, 0, *SIZE))
    image.putalpha(alpha)
    return image


def on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.paste("white", (24, 0, *SIZE))
    return image


def turned(image: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    exif = image.getexif()
    exif[0x0112] = orientation
    return image.transpose(BACK[TURNS[orientation]]), exif


def in_orientation(suffix: str, orientation: int, image: Image.Image) -> Write:
    def write(stem: Path) -> None:
        stored, exif = turned(image, orientation)
        lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
        stored.save(stem.with_suffix(f".{suffix}"), exif=exif, **lossless.get(suffix, {}))

    return write


def saving(image: Image.Image, suffix: str, **options: Any) -> Write:
    return lambda stem: image.save(stem.with_suffix(f".{suffix}"), **options)


def deep(scale: float, dtype: str, suffix: str) -> Write:
    values = (np.asarray(gray()).astype(np.float64) * scale).astype(dtype)
    return saving(Image.fromarray(values), suffix)


def clear_palette() -> Image.Image:
    image = half_clear(color()).convert("RGB").quantize(8)
    image.info["transparency"] = image.getpixel((40, 4))
    return image


def pgm(stem: Path) -> None:
    values = np.asarray(gray()).astype(">u2") * 257
    header = f"P5 {SIZE[0]} {SIZE[1]} 65535\n".encode()
    stem.with_suffix(".pgm").write_bytes(header + values.astype(">u2").tobytes())


def dark_pgm(stem: Path) -> None:
    """16 bits, of which only the lowest are used: black, even if scaling would brighten it."""
    header = f"P5 {SIZE[0]} {SIZE[1]} 65535\n".encode()
    stem.with_suffix(".pgm").write_bytes(header + np.full(SIZE[::-1], 200, ">u2").tobytes())


def damaged_note(stem: Path) -> None:
    color().save(stem.with_suffix(".png"), exif=b"Exif\0\0nothing that EXIF is")


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    found = ImageCms.profileToProfile(color(), *profiles, outputMode="LAB")
    assert found is not None
    return found


def frames(suffix: str, **options: Any) -> Write:
    other = [Image.new("RGB", SIZE, "white")]
    return saving(color(), suffix, save_all=True, append_images=other, **options)


COLOR, GRAY = color(), gray().convert("RGB")
KINDS: dict[str, tuple[Write, Image.Image, int]] = {
    # Name: what writes it, what is to be seen, and how far a value may be off.
    **{
        f"{suffix} in orientation {orientation}": (
            in_orientation(suffix, orientation, color()),
            COLOR,
            8 if suffix == "jpg" else 0,
        )
        for suffix in ("jpg", "png", "webp", "tif")
        for orientation in TURNS
    },
    "turned, 16 bits": (
        in_orientation("png", 6, Image.fromarray(np.asarray(gray()).astype(np.uint16) * 257)),
        GRAY,
        0,
    ),
    "turned and clear": (
        in_orientation("png", 6, half_clear(color())),
        on_white(color()),
        0,
    ),
    "a damaged note": (damaged_note, COLOR, 0),
    "RGBA png": (saving(half_clear(color()), "png"), on_white(color()), 0),
    "RGBA webp": (saving(half_clear(color()), "webp", lossless=True), on_white(color()), 0),
    "RGBA tif": (saving(half_clear(color()), "tif"), on_white(color()), 0),
    "LA png": (saving(half_clear(gray()), "png"), on_white(gray()), 0),
    "palette with clear color, png": (saving(clear_palette(), "png"), on_white(color()), 4),
    "palette with clear color, gif": (saving(clear_palette(), "gif"), on_white(color()), 4),
    "RGB with clear color": (
        saving(half_clear(color()).convert("RGB"), "png", transparency=(0, 0, 0)),
        on_white(color()),
        0,
    ),
    "L with clear gray": (
        saving(half_clear(gray()).convert("L"), "png", transparency=0),
        on_white(gray()),
        0,
    ),
    "16 bits with clear gray": (
        saving(
            Image.fromarray(np.asarray(half_clear(gray()).convert("L")).astype(np.uint16) * 257),
            "png",
            transparency=0,
        ),
        on_white(gray()),
        0,
    ),
    "16-bit png": (deep(257, "uint16", "png"), GRAY, 0),
    "16-bit png, low bytes 0": (deep(256, "uint16", "png"), GRAY, 0),
    "16-bit tif": (deep(257, "uint16", "tif"), GRAY, 0),
    "16-bit tif, big-endian": (deep(257, ">u2", "tif"), GRAY, 0),
    "16-bit pgm": (pgm, GRAY, 0),
    "dark 16-bit pgm": (dark_pgm, Image.new("RGB", SIZE), 0),
    "32-bit tif of 16 bits": (deep(257, "int32", "tif"), GRAY, 0),
    "32-bit tif of 8 bits": (deep(1, "int32", "tif"), GRAY, 0),
    "float tif to 1": (deep(1 / 255, "float32", "tif"), GRAY, 0),
    "float tif to 255": (deep(1, "float32", "tif"), GRAY, 0),
    "float tif to 65535": (deep(257, "float32", "tif"), GRAY, 0),
    "palette": (saving(color().quantize(8), "png"), COLOR, 4),
    "bits": (
        saving(gray().point(lambda v: 255 * (v > 100), "1"), "png"),
        gray().point(lambda v: 255 * (v > 100)).convert("RGB"),
        0,
    ),
    "CMYK tif": (saving(color().convert("CMYK"), "tif"), COLOR, 2),
    "CMYK jpg": (saving(color().convert("CMYK"), "jpg", quality=100), COLOR, 24),
    "LAB tif": (saving(lab(), "tif"), COLOR, 24),
    "gif of two frames": (frames("gif"), COLOR, 4),
    "webp of two frames": (frames("webp", lossless=True), COLOR, 0),
    "png of two frames": (frames("png"), COLOR, 0),
    "tif of two pages": (frames("tif"), COLOR, 0),
}


class Passing(PictureDataset):
    """A data set with pictures as examples, as in training and evaluation."""

    def __init__(self, images: ImageFolder) -> None:
        super().__init__(images, lambda picture: {"pixels": pil_to_tensor(picture)})

    def __len__(self) -> int:
        return len(self.images)

    def image_ids(self, rows: Any) -> list[str]:
        return [list(self.images)[row] for row in rows]

    ids = image_ids

    def fields(self, rows: Any, image_index: list[int], epoch: int) -> dict[str, Any]:
        return {"image_index": torch.tensor(image_index)}


def by_data_set(path: Path) -> torch.Tensor:
    pixels: torch.Tensor = Passing(ImageFolder(path.parent))[0]["images"]["pixels"][0]
    return pixels


def by_extraction(path: Path) -> torch.Tensor:
    def processor(picture: Image.Image) -> dict[str, torch.Tensor]:
        return {"grid": pil_to_tensor(picture)}

    images = ImageFolder(path.parent, recursive=True)
    reader = _Pictures(images, processor, 1, [(path.stem,)], DataFaultsConfig())
    pixels: torch.Tensor = reader._read((path.stem,))[1]["grid"][0]
    return pixels


def by_pretraining(path: Path) -> torch.Tensor:
    dataset = object.__new__(MaskDataset)
    dataset.images = ImageFolder(path.parent)
    dataset._process = lambda picture: {"image": pil_to_tensor(picture)}  # type: ignore[assignment]
    return dataset._image(path.stem)


def by_ask(path: Path) -> torch.Tensor:
    seen: list[Image.Image] = []

    def read(given: Path) -> Image.Image:
        seen.append(READ(given))
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "read_image", read)
        with pytest.raises(SystemExit):
            command.main([str(path), "What is it?"])
    return pil_to_tensor(seen[0])


def by_report(path: Path) -> torch.Tensor:
    uri = thumbnails(ImageFolder(path.parent), [path.stem])[path.stem]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return pil_to_tensor(thumbnail.convert("RGB"))


READ = inputs.read_image
DOORS = {
    "training and evaluation": by_data_set,
    "feature extraction": by_extraction,
    "pretraining": by_pretraining,
    "ask": by_ask,
    "report": by_report,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    write, expected, off = KINDS[request.param]
    folder = tmp_path_factory.mktemp("pictures")
    write(folder / "picture")
    (path,) = folder.iterdir()
    return path, np.asarray(expected), off


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_picture_of_any_kind_is_read_with_the_right_colors(
    door: Callable[[Path], torch.Tensor], kind: tuple[Path, Pixels, int]
) -> None:
    path, expected, off = kind
    seen = door(path).permute(1, 2, 0).numpy()
    assert seen.shape == expected.shape
    difference = np.abs(seen.astype(int) - expected)
    if door is by_report:  # a lossy copy: edges of the blocks are soft
        assert np.median(difference) <= off + 6
        assert (difference <= off + 40).mean() > 0.9
    else:
        assert difference.max() <= off
