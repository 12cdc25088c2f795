"""Interface of question file formats, from which question stores are converted."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lavis_ext.common.files import is_file, is_folder, real_path

log = logging.getLogger(__name__)

Row = tuple[str, str, str, str | None, str | None, str | None, str | None, str]
"""The columns of ``table.SCHEMA``, and the record as JSON, which metrics read."""


class FileRead(Protocol):
    """A file that is being read, such as ``json_records.RecordFile``."""

    path: Path
    bytes_read: int
    digest: Any
    """Hash of the bytes read so far."""


@dataclass(frozen=True)
class QuestionFiles(ABC):
    """Question files of one split; a format is a subclass.

    Attributes:
        named: the file or folder given by the user, for messages and the store's location.
        files: paths of the files, in order.
    """

    named: Path
    files: tuple[Path, ...]

    @property
    def options(self) -> str:
        """Key of the options that affect the rows, besides the files' content."""
        return ""

    @abstractmethod
    def read(self) -> tuple[Iterator[Row], Sequence[FileRead]]:
        """Iterate over the rows; the second value has their files while they are read.

        Iterating raises UserError naming the file and, if known, the record.
        """


def first_existing(candidates: Sequence[Path], key: str) -> Path | None:
    """The first file or folder that exists, as :func:`preferred`; None if there is none."""
    found = [path for path in candidates if is_file(path) or is_folder(path)]
    distinct = {real_path(path): path for path in reversed(found)}  # of one file, its first path
    places = [(path,) for path in found if distinct[real_path(path)] is path]
    return preferred(places, key)[0] if places else None


def preferred(found: Sequence[tuple[Path, ...]], key: str) -> tuple[Path, ...]:
    """The first of several places of a split's files; warns of the others, naming ``key``."""
    if len(found) > 1:
        others = [str(paths[0]) for paths in found[1:]]
        log.warning(
            "Reading %s and ignoring %s; set %s to choose.", found[0][0], ", ".join(others), key
        )
    return found[0]
