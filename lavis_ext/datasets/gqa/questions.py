"""Finds question files in GQA's layout, and reads GQA's formats.

Read are GQA's own files (questions1.2: a JSON object keyed by question id), a folder of such files
(``train_all_questions/train_all_questions_*.json``) and LAVIS's form (a list of records with
``image`` and ``question_id``). Ids stay strings: GQA's begin with zeros ("02930152").
"""

import re
from collections.abc import Sequence
from pathlib import Path

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import is_file, is_folder
from lavis_ext.datasets.gqa.question_store import open_store
from lavis_ext.datasets.gqa.question_table import QuestionTable


def read_questions(source: Path, store: Path | None = None) -> QuestionTable:
    """The questions of one file, or of every ``*.json`` of a folder of shards.

    Large files are converted on first use, and opened from then on (see ``question_store``).

    Args:
        source: the file or folder.
        store: the folder for what is converted; by default one beside ``source``.

    Raises UserError naming the file and, where there is one, the record: for a file that is
    missing, empty, cut off or of another shape, or changes meanwhile, a record without a question
    or an image, and a question id that stands twice.
    """
    files = sorted(source.glob("*.json"), key=_numbers_last) if is_folder(source) else [source]
    if not files:
        raise UserError(f"{source}: the folder has no *.json files with questions.")
    return QuestionTable.of_store(open_store(files, source, store))


def _numbers_last(path: Path) -> tuple[str, int]:
    """Sorts shard_2 before shard_10."""
    match = re.search(r"(\d+)$", path.stem)
    return (path.stem[: match.start()], int(match[1])) if match else (path.stem, -1)


QUESTION_FOLDERS: Sequence[str] = ("questions", "questions1.2", "annotations", ".")


def find_questions(root: Path, split: str, subset: str) -> Path:
    """The file or folder of shards with ``split``'s questions below ``root``, in GQA's layout.

    ``subset`` is ``balanced`` or ``all``. Raises UserError listing where it was looked for.
    """
    stem = f"{split}_{subset}_questions"
    candidates = [
        root / folder / name for folder in QUESTION_FOLDERS for name in (f"{stem}.json", stem)
    ]
    for candidate in candidates:
        if is_file(candidate) or is_folder(candidate):
            return candidate
    if not is_folder(root):
        raise UserError(
            f"datasets.gqa_fusion.root: there is no folder {root}. Give the folder that has GQA's "
            "`questions` and `images`; `run_scripts/download_gqa.sh` fetches them."
        )
    raise UserError(
        f"{root}: no {subset} questions of split '{split}'. Looked for {stem}.json and the folder "
        f"{stem} in it and in its folders {', '.join(QUESTION_FOLDERS[:-1])}."
    )
