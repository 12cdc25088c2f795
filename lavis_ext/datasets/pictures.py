"""A folder of images addressed by id, and reading one of them as RGB."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lavis_ext.common.errors import UserError, shortened

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Whatever its suffix, a file is read as one of these. Pillow knows others by their first bytes,
and starts Ghostscript for one of them, EPS."""


class ImageFolder:
    """The images of one folder, found by id: the file's name without its suffix.

    With ``recursive`` those of its subfolders too; their ids are ``SUBFOLDER/NAME``. The folder is
    listed once. An id is only ever looked up in that list, so one that holds a path ("../x") can't
    leave the folder.
    """

    def __init__(self, folder: Path, *, recursive: bool = False) -> None:
        self.folder = folder
        try:
            below = (
                _names_below(folder) if recursive else (each.name for each in os.scandir(folder))
            )
            names = sorted(below)
        except OSError as error:
            raise UserError(
                f"{folder}: the image folder can't be read ({error.strerror})."
            ) from None
        self._names = {
            Path(name).with_suffix("").as_posix(): name
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        }

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._names

    def __iter__(self) -> Iterator[str]:
        """The ids, by alphabet."""
        return iter(sorted(self._names))

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of ``image_ids`` that the folder has no image for, sorted."""
        return sorted(i for i in image_ids if i not in self._names)

    def path(self, image_id: str) -> Path:
        """The file of an image. Raises UserError where there is none."""
        if image_id not in self._names:
            raise UserError(
                f"{self.folder}: no image '{image_id}' (looked for {image_id}.jpg, .png and the "
                "other usual suffixes)."
            )
        return self.folder / self._names[image_id]

    def read(self, image_id: str) -> Image.Image:
        """The image as RGB; see :func:`read_image`. Raises UserError as it does."""
        return read_image(self.path(image_id))


def _names_below(folder: Path) -> Iterator[str]:
    """Paths of all files in a folder and its subfolders. Raises OSError for what can't be read."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, _, files in os.walk(folder, onerror=refuse):
        for name in files:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def read_image(path: Path) -> Image.Image:
    """A picture as RGB, 8 bits a channel; grayscale, CMYK, palette and 16-bit are converted.

    Raises UserError naming the file if it is missing, empty, truncated, of too many pixels
    (Pillow's limit, 179 million) or not an image of the ``FORMATS``.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        known = f"not an image that is read here ({', '.join(FORMATS)})"
        raise UserError(f"{path}: {'an empty file' if empty else known}.") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise whatever the decoder stumbles over
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UserError(f"{path}: the image can't be read ({shortened(reason, 120)}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` as RGB with 8 bits a channel.

    Pillow clips 16-bit gray to its lowest byte range, which turns most of it white; it is scaled.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        deep = image.mode.startswith("I;16") or values.max(initial=0.0) > 255
        scale = 257.0 if deep else 1.0  # 65535 / 255
        return Image.fromarray((values / scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
