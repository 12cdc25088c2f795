"""The image folder: look-up of ids, formats, and errors for broken images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.pictures import ImageFolder

SIDE = 8


def saved(folder: Path, name: str, image: Image.Image) -> ImageFolder:
    image.save(folder / name)
    return ImageFolder(folder)


def flat(mode: str, value: object) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), value)  # type: ignore[arg-type]


def center(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    assert image.size == (SIDE, SIDE)
    pixel = image.getpixel((SIDE // 2, SIDE // 2))
    assert isinstance(pixel, tuple)
    return tuple(int(value) for value in pixel)


@pytest.mark.parametrize(
    "name", ["1.jpg", "1.JPG", "1.jpeg", "1.png", "1.bmp", "1.webp", "1.gif", "1.tif", "1.ppm"]
)
def test_an_image_is_found_by_its_id_with_any_suffix(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    folder = saved(tmp_path, name, flat("RGB", (200, 100, 50)))
    assert len(folder) == 1
    assert "1" in folder
    assert folder.path("1").name == name
    assert center(folder.read("1")) == pytest.approx((200, 100, 50), abs=4)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("gray.png", flat("L", 128), (128, 128, 128)),
        ("gray.jpg", flat("L", 128), (128, 128, 128)),
        ("bits.png", flat("1", 1), (255, 255, 255)),
        ("rgba.png", flat("RGBA", (200, 100, 50, 255)), (200, 100, 50)),
        ("gray_alpha.png", flat("LA", (128, 255)), (128, 128, 128)),
        ("palette.png", flat("RGB", (200, 100, 50)).quantize(4), (200, 100, 50)),
        ("cmyk.jpg", flat("CMYK", (0, 255, 255, 0)), (254, 0, 0)),
        ("cmyk.tif", flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_modes_are_read_as_rgb(
    name: str, image: Image.Image, expected: tuple[int, ...], tmp_path: Path
) -> None:
    folder = saved(tmp_path, name, image)
    assert center(folder.read(Path(name).stem)) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize(("value", "expected"), [(65535, 255), (32768, 128), (200, 0), (0, 0)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_not_clipped(
    value: int, expected: int, suffix: str, tmp_path: Path
) -> None:
    pixels = np.full((SIDE, SIDE), value, dtype=np.uint16)
    folder = saved(tmp_path, f"deep.{suffix}", Image.fromarray(pixels))
    assert center(folder.read("deep")) == (expected,) * 3


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the image file is empty"),
        (b"<html>not found</html>", "not a supported image format"),
        (jpeg()[:1000], "can't be read (image file is truncated"),
        (jpeg()[:10], "can't be read (Truncated File Read"),
    ],
    ids=["empty", "html", "truncated", "header alone"],
)
def test_a_broken_image_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "2354786.jpg").write_bytes(content)
    with pytest.raises(UserError) as caught:
        ImageFolder(tmp_path).read("2354786")
    assert str(caught.value).startswith(str(tmp_path / "2354786.jpg"))
    assert reason in str(caught.value)


def test_a_folder_with_an_image_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").mkdir()
    with pytest.raises(UserError, match=r"1\.jpg: the image can't be read \(Is a directory\)"):
        ImageFolder(tmp_path).read("1")


def test_an_id_with_a_path_cannot_leave_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "images"
    inside.mkdir()
    flat("RGB", (1, 2, 3)).save(tmp_path / "secret.png")
    folder = saved(inside, "1.png", flat("RGB", (1, 2, 3)))
    for image_id in ("../secret", str(tmp_path / "secret"), "../images/1"):
        assert image_id not in folder
        with pytest.raises(UserError, match="no image"):
            folder.read(image_id)


@pytest.mark.parametrize("name", ["./1.png", "./images/./1.png", ".\\1"])
def test_a_name_may_begin_with_the_folder_that_it_is_in(name: str, tmp_path: Path) -> None:
    assert saved(tmp_path, "1.png", flat("RGB", (1, 2, 3))).missing([name]) == []


def test_missing_ids_are_listed_once(tmp_path: Path) -> None:
    folder = saved(tmp_path, "1.png", flat("L", 0))
    assert folder.missing(["3", "1", "2"]) == ["2", "3"]
    with pytest.raises(UserError, match="gone: the image folder can't be read"):
        ImageFolder(tmp_path / "gone")
