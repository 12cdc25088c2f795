"""Images addressed by id in a folder, archive, table or at an address, and reading one as RGB."""

import hashlib
import io
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from lavis_ext.common.addresses import is_address
from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import check_regular, is_file, is_folder, is_sidecar
from lavis_ext.datasets.image_files import Cache, is_archive, is_pattern, open_files

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".webp", ".gif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Accepted formats, independent of the file's suffix. Pillow would also detect others, and run
Ghostscript for EPS."""
BACKGROUND = "white"
"""Color behind transparent pixels."""
ALWAYS_16_BITS = ("PNG", "PPM")
"""Formats whose pixels of mode I have 16 bits."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation."""


class ImageFolder:
    """The images of one folder, found by id: the file's name without its suffix.

    ``folder`` may also be a zip or tar archive, a Parquet table with images, a pattern of several
    such files (``shards/*.tar``), or an address that fsspec reads, of a folder or of such files.
    They are read where they are; a ``cache`` holds what comes from addresses.

    ``recursive`` includes subfolders; their ids are ``SUBFOLDER/NAME``. The folder is listed once,
    and names are only looked up in that list, so a path ("../x") can't leave the folder.

    Images are also found by common variants of their names: with a suffix, in any case or of
    another format than the file's ("1.JPG", "1.png" for 1.jpg), with extra leading folders
    ("train2014/1.jpg"), and without existing ones; accents may be composed or decomposed.
    """

    def __init__(
        self, folder: Path | str, *, recursive: bool = False, cache: Cache | None = None
    ) -> None:
        self.folder = folder if is_address(folder) else Path(folder)
        self._files_elsewhere = open_files(folder, cache) if _is_elsewhere(folder) else None
        # Tuples, as lists of 150 thousand images are four times as slow and large.
        self._files: dict[str, tuple[str, ...]] = {}
        self._by_last_part: dict[str, tuple[str, ...]] = {}
        try:
            for name in sorted(self._names(recursive)):
                stem = _stem(name)
                if stem != name:
                    image_id = composed(stem)
                    files = self._files[image_id] = (*self._files.get(image_id, ()), name)
                    last = image_id.rpartition("/")[2]
                    same = self._by_last_part.get(last)
                    self._by_last_part[last] = (*same, name) if same else files
        except OSError as error:
            raise UserError(
                f"{folder}: the image folder can't be read ({error.strerror})."
            ) from None

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: str) -> bool:
        return bool(self._candidates(name))

    def __iter__(self) -> Iterator[str]:
        """Sorted ids."""
        return iter(sorted(self._files))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Names without an image that can be opened, sorted.

        Broken links, empty files and files without read permission count as missing.

        Raises UserError for a name that matches several files, and for two names of one file with
        different leading folders: they are probably two images.
        """
        by_file: dict[str, str] = {}
        absent = []
        for name in sorted(names):
            if name not in self:
                absent.append(name)
                continue
            file = self._file(name)
            other = by_file.setdefault(file, name)
            if image_id_of(other) != image_id_of(name):
                raise UserError(
                    f"{self.folder}: '{shortened(other)}' and '{shortened(name)}' in the records "
                    f"would both be {PurePosixPath(file).name}. Put the images into those folders, "
                    "or use the same name for the same image."
                )
            if not self._can_be_opened(file):
                absent.append(name)
        return absent

    def path(self, name: str) -> Path:
        """Path of an image in a folder. Raises UserError if there is none, or several."""
        return Path(self.folder) / self._file(name)

    def read(self, name: str) -> Image.Image:
        """Read an image as RGB; see :func:`read_image`, also for errors."""
        if self._files_elsewhere is None:
            return read_image(self.path(name))
        file = self._file(name)
        content = io.BytesIO(self._files_elsewhere.read(file))
        return _decoded(content, f"{self.folder}/{shortened(file)}")

    def stamp(self, name: str) -> tuple[int, int]:
        """Size of an image's file in bytes, and a number that changes with its content.

        The number is the file's time; elsewhere than in a folder, a hash of the archive's time or
        of what a server tells. The size is -1 where only reading would tell.

        Raises OSError for an unreadable file.
        """
        if self._files_elsewhere is None:
            status = self.path(name).stat()
            return status.st_size, status.st_mtime_ns
        file = self._file(name)
        size = self._files_elsewhere.size(file)
        version = self._files_elsewhere.version_of(file).encode()
        number = hashlib.blake2b(version, digest_size=8).digest()
        return -1 if size is None else size, int.from_bytes(number, "big", signed=True)

    def digest(self, name: str) -> str:
        """Hash of an image's file. Raises OSError or UserError for an unreadable one."""
        if self._files_elsewhere is None:
            content = self.path(name).read_bytes()
        else:
            content = self._files_elsewhere.read(self._file(name))
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def _file(self, name: str) -> str:
        """File of an image. Raises UserError if there is none, or several."""
        files = self._candidates(name)
        if not files:
            raise UserError(
                f"{self.folder}: no image '{name}' (looked for {name}.jpg, .png and the "
                "other usual suffixes)."
            )
        if len(files) > 1:
            raise UserError(
                f"{self.folder}: image '{shortened(name)}' could be {' or '.join(files[:3])}; "
                "remove one of them, or use the full file name in the records."
            )
        return files[0]

    def _names(self, recursive: bool) -> Iterator[str]:
        """Names of all files, without sidecars. Raises OSError if a folder can't be read."""
        if self._files_elsewhere is None:
            return _names_in(Path(self.folder), recursive)
        names = self._files_elsewhere.names()
        return (name for name in names if not any(map(is_sidecar, name.split("/"))))

    def _can_be_opened(self, file: str) -> bool:
        if self._files_elsewhere is None:
            return _can_be_opened(Path(self.folder) / file)
        return self._files_elsewhere.size(file) != 0

    def _candidates(self, name: str) -> Sequence[str]:
        """Candidate files for a record's name."""
        if files := self._files.get(composed(name)):
            return files
        image_id = image_id_of(name).replace("\\", "/")
        parts = [part for part in image_id.split("/") if part != "."]  # as `find .` writes
        if ".." in parts:
            return []
        for start in range(len(parts)):
            if files := self._files.get("/".join(parts[start:])):
                return [each for each in files if composed(each) == composed(name)] or files
        return self._by_last_part.get("/".join(parts), ())


class NoImages(ImageFolder):
    """Stands for a folder that isn't there yet, where every batch has black images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files_elsewhere = None
        self._files = {}
        self._by_last_part = {}


def _is_elsewhere(place: Path | str) -> bool:
    """Whether images are in files or at an address, rather than in a folder."""
    if is_address(place):
        return True
    path = Path(place)
    return not is_folder(path) and (is_file(path) or is_archive(path) or is_pattern(path))


def image_id_of(name: str) -> str:
    """Image id of a file name or path: without the image suffix, with composed accents."""
    return composed(_stem(name))


def composed(name: str) -> str:
    """A name with composed accents (Unicode's NFC), while macOS writes decomposed ones."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    """A name without its image suffix, if it has one."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot + suffix.lower() in SUFFIXES else name


def _can_be_opened(path: Path) -> bool:
    """Whether ``path`` is a non-empty, readable file; doesn't read from it."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and os.access(path, os.R_OK)


def _names_in(folder: Path, recursive: bool) -> Iterator[str]:
    """Names in a folder, or paths of files below it, without sidecars.

    Raises OSError if a folder can't be read.
    """
    if not recursive:
        yield from (each.name for each in os.scandir(folder) if not is_sidecar(each.name))
        return

    def raise_error(error: OSError) -> None:
        raise error

    seen = set()  # links may form cycles
    for parent, folders, files in os.walk(folder, onerror=raise_error, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not is_sidecar(name)]
        if real in seen:
            continue
        seen.add(real)
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        for name in files:
            if not is_sidecar(name):
                yield name if below == "." else f"{below}/{name}"


def read_image(path: Path) -> Image.Image:
    """Read a picture as upright RGB with 8 bits per channel; of an animation, the first frame.

    Its EXIF orientation is applied (JPEG, PNG, WebP, TIFF), transparent pixels are laid over
    ``BACKGROUND``, and it is converted by :func:`to_rgb`.

    Raises UserError naming the file if it is missing, empty, truncated, of too many pixels
    (Pillow's limit, 179 million) or not an image of the ``FORMATS``.
    """
    return _decoded(path, str(path))


def decode_image(content: bytes, where: str, most_pixels: int) -> Image.Image:
    """Decode a picture like :func:`read_image`; ``where`` names it in errors.

    Raises UserError also for more than ``most_pixels``, before they are decoded.
    """
    return _decoded(io.BytesIO(content), where, most_pixels)


def _decoded(source: Path | io.BytesIO, where: str, most_pixels: int | None = None) -> Image.Image:
    try:
        if isinstance(source, Path):
            check_regular(source)
        with Image.open(source, formats=FORMATS) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise UserError(
                    f"{where}: the image has {image.width} x {image.height} pixels; at most "
                    f"{most_pixels / 1e6:.0f} million are read."
                )
            image.load()  # the orientation may follow the pixels
            return _upright(to_rgb(image), _orientation(image))
    except UnidentifiedImageError:
        size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
        known = f"not a supported image format ({', '.join(FORMATS)})"
        raise UserError(f"{where}: {known if size else 'the image file is empty'}.") from None
    except (MemoryError, UserError):
        raise
    except Exception as error:  # decoders raise any type for damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UserError(f"{where}: the image can't be read ({shortened(reason, 120)}).") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB with 8 bits per channel, transparent pixels laid over ``BACKGROUND``.

    Values beyond 8 bits are scaled (see :func:`_levels`); Pillow would clip them, which makes most
    of a 16-bit picture white.
    """
    if image.mode.startswith("I") or image.mode == "F":
        levels = Image.fromarray(_levels(image))
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # a 16-bit PNG's transparent gray value
            seen = np.asarray(image) != clear
            levels.putalpha(Image.fromarray(seen.astype(np.uint8) * 255))
        image = levels
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, BACKGROUND), over)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert found is not None, "None only for in-place conversion"
        return found
    return image.convert("RGB")


def _levels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert gray of more than 8 bits to 8 bits [H, W].

    16-bit values keep their high byte, as in Pillow's 16-bit color. If a file doesn't specify the
    number of used bits (TIFF's 32-bit integers and floats), the smallest usual range that contains
    the largest value is assumed: up to 1 (floats), 255, 65535, or 2**31 - 1.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return (values >> 8).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64))
    most = float(values.max(initial=0.0))
    if image.mode == "I" and image.format in ALWAYS_16_BITS:
        top = 65535
    else:
        ranges = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        top = next((each for each in ranges if most <= each), 2**31 - 1)
    scaled = np.floor(values / 256) if top == 65535 else values * (255 / top)
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if absent or damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data; the pixels are valid
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation.

    ``ImageOps.exif_transpose`` rewrites the EXIF data, which fails for some cameras.
    """
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
