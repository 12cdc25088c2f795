"""Converts question files once, for all processes of all runs.

A store lies in the folder ``.lavis_ext_questions`` beside its question files, in the user's cache
folder where that can't be written, or where the config says. Its name holds a hash of the files'
names, sizes and times, so other files never meet an old store. The process that gets the lock
converts, and the system takes the lock from one that dies; the others wait.

Sources below ``SMALL`` are converted into memory: they are read in less time than it takes to look
after a file, and a folder of small files stays as it was. All else about them is the same.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import room_in, size_in_words, written_aside
from lavis_ext.common.locks import Lock, Regularly
from lavis_ext.datasets.gqa.question_conversion import Progress, Stamp, convert, stamps
from lavis_ext.datasets.gqa.question_table import QuestionStore

log = logging.getLogger(__name__)

SMALL = 8 * 2**20
"""Bytes of question files that are worth no store."""
FORMAT = 2
"""To be raised with every change of what a conversion writes."""
FOLDER = ".lavis_ext_questions"
LEAST_SHARE = 0.2
"""Of the question files' size that a conversion takes on the disk, at the very least."""


def open_store(files: Sequence[Path], source: Path, folder: Path | None = None) -> QuestionStore:
    """The store of these question files, converted first where there is none.

    Args:
        files: the question files, in order.
        source: what the user named: one of them, or their folder.
        folder: where stores go, instead of beside ``source``.

    Raises UserError as the conversion does, and for a folder that can't be written.
    """
    state = stamps(files)
    if sum(size for _, size, _ in state) < SMALL:
        memory = _Memory()
        convert(files, source, state, memory, lambda records, size: None)
        return QuestionStore(memory.files["questions"], memory.files["records"])
    places = [_Stored(each, source, state) for each in _folders(source, folder)]
    for place in places:
        if store := place.opened():
            return store
    refused = []
    for place in places:
        try:
            lock = place.locked()
        except OSError as error:
            refused.append(f"{place.folder} ({error.strerror})")
            continue
        with lock:
            return place.opened() or place.converted(files, lock)
    raise UserError(
        f"{source}: what it is converted to can't be written to {' or '.join(refused)}. Name "
        "another folder with datasets.gqa_fusion.question_store."
    )


def _folders(source: Path, chosen: Path | None) -> list[Path]:
    """Where the store may be, best first."""
    # Folders for all sources have one of their own for each folder of sources: names are alike.
    own = hashlib.blake2b(os.fsencode(source.resolve().parent), digest_size=8).hexdigest()
    if chosen is not None:
        return [chosen / own]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [source.parent / FOLDER, cache / "lavis_ext" / "questions" / own]


class _Memory:
    """Files of a conversion that are kept in memory."""

    def __init__(self) -> None:
        self.files: dict[str, pa.Buffer] = {}

    @contextmanager
    def create(self, name: str) -> Iterator[pa.NativeFile]:
        sink = pa.BufferOutputStream()
        yield sink
        self.files[name] = sink.getvalue()

    def open(self, name: str) -> pa.NativeFile:
        return pa.BufferReader(self.files[name])


class _Aside:
    """Files of a conversion on their way into a folder."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths

    def create(self, name: str) -> pa.NativeFile:
        return pa.OSFile(str(self._paths[name]), "wb")

    def open(self, name: str) -> pa.NativeFile:
        return pa.memory_map(str(self._paths[name]))


class _Stored:
    """The store of one source in one folder, which may not exist yet."""

    def __init__(self, folder: Path, source: Path, state: tuple[Stamp, ...]) -> None:
        self.folder = folder
        self._source = source
        self._state = state
        self._stem = source.name  # with its suffix: beside q.json there may be a folder q
        key = hashlib.blake2b(repr((FORMAT, state)).encode(), digest_size=8).hexdigest()
        self._names = {
            name: f"{self._stem}.{key}.{name}.arrow" for name in ("questions", "records", "rows")
        }

    def opened(self) -> QuestionStore | None:
        """The store, if it is there and whole."""
        questions, records = (self.folder / self._names[name] for name in ("questions", "records"))
        if not (questions.exists() and records.exists()):
            return None
        try:
            store = QuestionStore(questions, records)
            store.check()
        except (pa.ArrowException, OSError) as error:  # after a loss of power, say
            reason = shortened(str(error), 120)
            log.warning("%s is damaged and will be written again (%s).", questions, reason)
            return None
        return store

    def locked(self) -> Lock:
        """The lock of this store, once it is taken; meanwhile it says how far its holder is.

        Raises OSError where there can't be one.
        """
        lock = Lock(self.folder / f"{self._stem}.lock")
        line = Regularly()
        while not lock.taken():
            if line.due():
                log.info("Waiting for another process: %s", lock.told())
        return lock

    def converted(self, files: Sequence[Path], lock: Lock) -> QuestionStore:
        """Write the store, then remove those of earlier states of the files. Needs the lock."""
        self._remove(rf"\.{self._any}\.\d+")
        needed = LEAST_SHARE * sum(size for _, size, _ in self._state)
        if needed > (free := room_in(self.folder)):
            raise UserError(
                f"{self.folder}: the converted questions need more than {size_in_words(needed)}, "
                f"and {size_in_words(free)} are free. Make room, or name another folder with "
                "datasets.gqa_fusion.question_store."
            )
        lock.tell("")
        log.info("Converting %s, once for all runs, into %s.", self._source, self.folder)
        scratch = self.folder / f".{self._names['rows']}.{os.getpid()}"
        try:
            # The questions are left last, and so appear when the records are there.
            with (
                written_aside(self.folder / self._names["questions"]) as questions,
                written_aside(self.folder / self._names["records"]) as records,
            ):
                aside = _Aside({"questions": questions, "records": records, "rows": scratch})
                convert(files, self._source, self._state, aside, self._progress(lock))
        except OSError as error:
            raise UserError(
                f"{self.folder}: the converted questions can't be written "
                f"({error.strerror or error}). Make room, or name another folder with "
                "datasets.gqa_fusion.question_store."
            ) from None
        finally:
            scratch.unlink(missing_ok=True)
        self._remove(self._any, but=set(self._names.values()))
        store = self.opened()
        assert store is not None, "it was written just now"
        return store

    @property
    def _any(self) -> str:
        """A pattern of the names that files of this source have, whatever its state."""
        return rf"{re.escape(self._stem)}\.[0-9a-f]{{16}}\.[a-z]+\.arrow"

    def _remove(self, pattern: str, but: Collection[str] = ()) -> None:
        for path in self.folder.iterdir():
            if re.fullmatch(pattern, path.name) and path.name not in but:
                path.unlink(missing_ok=True)

    def _progress(self, lock: Lock) -> Progress:
        """Logs how far the conversion is, and writes it into the lock file for those who wait."""
        total = sum(size for _, size, _ in self._state)
        line = Regularly()
        started = time.monotonic()

        def progress(records: int, size: int) -> None:
            rate = records / max(time.monotonic() - started, 1e-9)
            text = (
                f"{self._source.name}: {records:,} records converted, {size / total:.0%} of all, "
                f"{rate:,.0f} a second."
            )
            lock.tell(text)
            if line.due():
                log.info(text)

        return progress
