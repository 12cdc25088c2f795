"""Convert question files once, for all processes of all runs.

A store is in the folder ``.lavis_ext_questions`` beside its question files, in the user's cache
folder if that is read-only, or in the config's folder. Its name has a hash of the files' names,
sizes and times, so changed files get a new store. The process with the lock converts while the
others wait; the system releases the lock of a dead process.

Sources smaller than ``SMALL`` are converted in memory, which is faster and leaves their folders
unchanged.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.common.files import free_space, real_path, size_in_words, user_cache, written_aside
from lavis_ext.common.locks import Lock
from lavis_ext.common.progress import ProgressLine
from lavis_ext.datasets.questions.conversion import Progress, Stamp, convert, stamps
from lavis_ext.datasets.questions.files import QuestionFiles
from lavis_ext.datasets.questions.table import QuestionStore

log = logging.getLogger(__name__)

SMALL = 8 * 2**20
"""Bytes; smaller question files are converted in memory."""
FORMAT = 4
"""Version of the converted files' format; increase it with every change."""
FOLDER = ".lavis_ext_questions"
STORE_KEY = "datasets.NAME.question_store"
LEAST_SHARE = 0.2
"""Lower bound of a conversion's size, as a share of the question files' size."""


def open_store(source: QuestionFiles, folder: Path | None = None) -> QuestionStore:
    """Open the store of these question files, which are converted on first use.

    Args:
        source: the question files.
        folder: folder of stores; by default beside the files.

    Raises UserError as the conversion does, and for a read-only folder.
    """
    state = stamps(source.files)
    if sum(size for _, size, _ in state) < SMALL:
        memory = _Memory()
        convert(source, state, memory, lambda records, size: None)
        return QuestionStore(memory.files["questions"], memory.files["records"])
    places = [_Stored(each, source, state) for each in _folders(source.named, folder)]
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
            return place.opened() or place.converted(lock)
    raise UserError(
        f"{source.named}: the converted questions can't be written to {' or '.join(refused)}. Set "
        f"another folder with {STORE_KEY}."
    )


def _folders(source: Path, chosen: Path | None) -> list[Path]:
    """Possible folders of the store, preferred first."""
    # Shared folders get a subfolder per source folder, since file names may be equal.
    own = hashlib.blake2b(os.fsencode(real_path(source).parent), digest_size=8).hexdigest()
    if chosen is not None:
        return [chosen / own]
    return [source.parent / FOLDER, user_cache("questions") / own]


class _Memory:
    """Files of a conversion in memory."""

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
    """Temporary files of a conversion, to be renamed into a folder."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths

    def create(self, name: str) -> pa.NativeFile:
        return pa.OSFile(str(self._paths[name]), "wb")

    def open(self, name: str) -> pa.NativeFile:
        return pa.memory_map(str(self._paths[name]))


class _Stored:
    """The store of a source in a folder; it may not exist yet."""

    def __init__(self, folder: Path, source: QuestionFiles, state: tuple[Stamp, ...]) -> None:
        self.folder = folder
        self._source = source
        self._state = state
        self._stem = source.named.name  # with its suffix: beside q.json there may be a folder q
        key = hashlib.blake2b(
            repr((FORMAT, source.options, state)).encode(), digest_size=8
        ).hexdigest()
        self._names = {
            name: f"{self._stem}.{key}.{name}.arrow" for name in ("questions", "records", "rows")
        }

    def opened(self) -> QuestionStore | None:
        """The store; None if it is missing or damaged."""
        questions, records = (self.folder / self._names[name] for name in ("questions", "records"))
        if not (questions.exists() and records.exists()):
            return None
        try:
            store = QuestionStore(questions, records)
            store.check()
        except (pa.ArrowException, OSError) as error:  # such as after a power loss
            reason = shortened(str(error), 120)
            log.warning("%s is damaged and will be rewritten (%s).", questions, reason)
            return None
        return store

    def locked(self) -> Lock:
        """Acquire the store's lock, logging its holder's progress while waiting.

        Raises OSError for a read-only folder.
        """
        lock = Lock(self.folder / f"{self._stem}.lock")
        with ProgressLine.logged(log) as line:
            while not lock.taken():
                line.update(f"Waiting for another process: {lock.read_note()}")
        return lock

    def converted(self, lock: Lock) -> QuestionStore:
        """Write the store, then remove those of earlier file versions. Requires the lock."""
        self._remove(rf"\.{self._any}\.\d+")
        needed = LEAST_SHARE * sum(size for _, size, _ in self._state)
        if needed > (free := free_space(self.folder)):
            raise UserError(
                f"{self.folder}: the converted questions need more than {size_in_words(needed)}, "
                f"and {size_in_words(free)} are free. Free some disk space, or set another folder "
                f"with {STORE_KEY}."
            )
        lock.write_note("")
        log.info("converting %s to %s, once for all runs", self._source.named, self.folder)
        scratch = self.folder / f".{self._names['rows']}.{os.getpid()}"
        try:
            # The questions' context exits last, so that they appear after the records.
            with (
                written_aside(self.folder / self._names["questions"]) as questions,
                written_aside(self.folder / self._names["records"]) as records,
                ProgressLine.logged(log) as line,
            ):
                aside = _Aside({"questions": questions, "records": records, "rows": scratch})
                convert(self._source, self._state, aside, self._progress(lock, line))
        except OSError as error:
            raise UserError(
                f"{self.folder}: the converted questions can't be written "
                f"({error.strerror or error}). Free some disk space, or set another folder with "
                f"{STORE_KEY}."
            ) from None
        finally:
            scratch.unlink(missing_ok=True)
        self._remove(self._any, but=set(self._names.values()))
        store = self.opened()
        assert store is not None, "it was written just now"
        return store

    @property
    def _any(self) -> str:
        """Glob pattern of stores of any version of this source's files."""
        return rf"{re.escape(self._stem)}\.[0-9a-f]{{16}}\.[a-z]+\.arrow"

    def _remove(self, pattern: str, but: Collection[str] = ()) -> None:
        for path in self.folder.iterdir():
            if re.fullmatch(pattern, path.name) and path.name not in but:
                path.unlink(missing_ok=True)

    def _progress(self, lock: Lock, line: ProgressLine) -> Progress:
        """A callback that logs progress and writes it to the lock's note for waiting processes."""
        total = sum(size for _, size, _ in self._state)
        started = time.monotonic()

        def progress(records: int, size: int) -> None:
            rate = records / max(time.monotonic() - started, 1e-9)
            text = (
                f"{self._source.named.name}: {records:,} records converted, {size / total:.0%} of "
                f"all, {rate:,.0f}/s."
            )
            lock.write_note(text)
            line.update(text)

        return progress
