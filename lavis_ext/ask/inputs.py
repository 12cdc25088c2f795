"""The pictures and questions that the command is given."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from lavis_ext.common.errors import UserError, printable
from lavis_ext.common.files import entries, is_folder, real_path
from lavis_ext.datasets.pictures import SUFFIXES, read_image

DRAWING = ".png"
"""Suffix of the drawing of answers about one picture."""
MOST_PICTURES = 1000
"""A page of so many pictures has some 60 MB."""


def places_and_questions(
    positional: Sequence[str], questions: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Pictures and questions. Without ``questions`` all after the first positional are questions.

    Raises UserError for an empty path, which would be the working directory, and for a picture
    that would be taken for a question.
    """
    if not all(positional if questions else positional[:1]):
        raise UserError("A PICTURE is an empty string; give the path of a picture or a folder.")
    if questions:
        return [Path(place) for place in positional], list(questions)
    first, *asked = positional
    if not asked:
        raise UserError(
            f"There is no question about {first}. Give --question, such as "
            '--question "What color is it?".'
        )
    for text in asked:
        if _looks_like_a_path(text):
            raise UserError(
                f"'{text}' stands where a question is expected, and looks like a picture or a "
                "folder. To ask about several pictures, put --question before each question: "
                f'{first} {text} --question "What color is it?".'
            )
    return [Path(first)], asked


def _looks_like_a_path(text: str) -> bool:
    try:
        exists = bool(text.strip()) and Path(text).exists()
    except OSError:  # longer than a file name may be
        exists = False
    one_word = len(text.split()) == 1
    suffix = Path(text).suffix.lower()
    return exists or suffix in SUFFIXES or (one_word and ("/" in text or "\\" in text))


def picture_paths(places: Sequence[Path]) -> list[Path]:
    """The pictures, with those of folders in order of their names, each once.

    A folder's pictures are those that aren't drawings of answers about another one in it.
    Raises UserError for missing places, folders without pictures, and too many pictures.
    """
    found: dict[Path, Path] = {}
    for place in places:
        inside = [place]
        if is_folder(place):
            inside = _pictures_in(place)
        else:
            try:
                place.stat()
            except OSError as error:
                raise UserError(f"{place}: the image can't be read ({error.strerror}).") from None
        for path in inside:
            found.setdefault(real_path(path), path)
    if len(found) > MOST_PICTURES:
        raise UserError(
            f"{len(found)} pictures are too many for one page; ask about at most {MOST_PICTURES} "
            "at once."
        )
    return list(found.values())


def _pictures_in(folder: Path) -> list[Path]:
    try:
        pictures = [
            path
            for path in entries(folder)
            if path.suffix.lower() in SUFFIXES and not is_folder(path)
        ]
    except OSError as error:
        raise UserError(f"{folder}: the folder can't be read ({error.strerror}).") from None
    if not pictures:
        raise UserError(f"{folder}: there are no pictures in this folder.")
    drawings = {drawing_name(path) for path in pictures}
    return [path for path in pictures if path.name not in drawings]


def drawing_name(picture: Path) -> str:
    """Default name of the drawing of answers about a picture."""
    return f"{picture.stem}_answers{DRAWING}"


class Pictures:
    """Reads pictures as they are needed, and remembers why some can't be read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.unreadable: list[str] = []
        self._count = len(paths)
        self.paths = _by_name(paths)
        """By the name that stands above a picture's answers."""
        self._remaining = iter(self.paths.items())

    def first(self) -> tuple[str, Image.Image]:
        """The first readable picture. Raises UserError if there is none."""
        found = next(iter(self), None)
        if found is None:
            if self._count == 1:
                raise UserError(self.unreadable[0])
            raise UserError(f"None of {self._count} pictures can be read.")
        return found

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        for name, path in self._remaining:
            try:
                yield name, read_image(path)
            except UserError as error:
                self.unreadable.append(str(error))
                if self._count > 1:
                    print(f"skipped: {printable(str(error))}", file=sys.stderr)


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by name; by path, where several have the same name."""
    names = Counter(path.name for path in paths)
    return {path.name if names[path.name] == 1 else str(path): path for path in paths}
