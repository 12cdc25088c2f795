"""Find question files in GQA's layout, and read GQA's formats.

The formats are GQA's files (questions1.2: a JSON object keyed by question id), a folder of such
files (``train_all_questions/train_all_questions_*.json``), LAVIS's list of records with ``image``
and ``question_id``, and JSON lines of such records, compressed or not. Ids stay strings: GQA's have
leading zeros ("02930152").
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import COMPRESSED_SUFFIXES, entries, is_folder
from lavis_ext.datasets.questions.files import QuestionFiles, Row, first_existing
from lavis_ext.datasets.questions.json_records import RecordFile
from lavis_ext.datasets.questions.record_files import record_file
from lavis_ext.datasets.questions.records import read_rows
from lavis_ext.datasets.questions.store import open_store
from lavis_ext.datasets.questions.table import QuestionTable

SUFFIXES = tuple(
    suffix + compressed
    for compressed in ("", *COMPRESSED_SUFFIXES)
    for suffix in (".json", ".jsonl", ".ndjson")
)
"""Suffixes of question files."""


def read_questions(source: Path, store: Path | None = None) -> QuestionTable:
    """Read the questions of one file, or of all shards in a folder (``SUFFIXES``).

    Large files are converted on first use and only opened afterwards (see ``questions.store``).

    Args:
        source: file or folder.
        store: folder of converted questions; by default beside ``source``.

    Raises UserError naming the file and, if known, the record: for a file that is missing, empty,
    truncated, of another format or changed while it is read, a record without a question or an
    image, and a repeated question id.
    """
    return QuestionTable.of_store(open_store(gqa_files(source), store))


def gqa_files(source: Path) -> "GqaFiles":
    """A question file, or the ``*.json`` of a folder. Raises UserError for a folder without any."""
    files = sorted(_shards(source), key=_numbers_last) if is_folder(source) else [source]
    if not files:
        raise UserError(f"{source}: the folder has no *.json files with questions.")
    return GqaFiles(source, tuple(files))


@dataclass(frozen=True)
class GqaFiles(QuestionFiles):
    """GQA's question files, or LAVIS's lists."""

    def read(self) -> tuple[Iterator[Row], Sequence[RecordFile]]:
        """Rows of the questions, and their files."""
        readers = [record_file(path) for path in self.files]
        return chain.from_iterable(map(read_rows, readers)), readers


def _shards(folder: Path) -> list[Path]:
    try:
        return [path for path in entries(folder) if path.name.endswith(SUFFIXES)]
    except OSError as error:
        raise UserError(f"{folder}: the folder can't be read ({error.strerror}).") from None


def _numbers_last(path: Path) -> tuple[str, int]:
    """Sort key that puts shard_2 before shard_10."""
    stem = path.name.partition(".")[0]
    match = re.search(r"(\d+)$", stem)
    return (stem[: match.start()], int(match[1])) if match else (stem, -1)


QUESTION_FOLDERS: Sequence[str] = ("questions", "questions1.2", "annotations", ".")


def find_questions(root: Path, split: str, subset: str) -> Path:
    """Find the file or folder of shards of a split's questions in GQA's layout below ``root``.

    ``subset`` is ``balanced`` or ``all``. Raises UserError listing the searched places.
    """
    stem = f"{split}_{subset}_questions"
    names = [stem + suffix for suffix in SUFFIXES]
    candidates = [root / folder / name for folder in QUESTION_FOLDERS for name in (*names, stem)]
    if found := first_existing(candidates, f"datasets.gqa_fusion.questions.{split}"):
        return found
    if not is_folder(root):
        raise UserError(
            f"datasets.gqa_fusion.root: there is no folder {root}. Give the folder that has GQA's "
            "`questions` and `images`; `run_scripts/download_gqa.sh` fetches them."
        )
    raise UserError(
        f"{root}: no {subset} questions of split '{split}'. Looked for {stem}.json and the folder "
        f"{stem} in it and in its folders {', '.join(QUESTION_FOLDERS[:-1])}."
    )
