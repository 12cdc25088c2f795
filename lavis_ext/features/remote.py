"""Local copies of the feature stores at an address.

A store is copied once, before it is read: training reads single rows at random. A shard's name is
the hash of its bytes, so that an interrupted copy continues with the shards that it lacks, and a
damaged one is noticed.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lavis_ext import distributed
from lavis_ext.common.addresses import Address, RemoteFile
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import (
    free_space,
    parse_json,
    size_in_words,
    user_cache,
    written_aside,
)
from lavis_ext.common.locks import Lock
from lavis_ext.common.progress import ProgressLine
from lavis_ext.distributed.peers import STORING
from lavis_ext.features.store import (
    FACTS,
    INDEX,
    SUFFIX,
    FeatureStore,
    altered,
    file_digest,
    unwritable,
)

log = logging.getLogger(__name__)


class RemoteStores:
    """The stores below an address, and the folder of their copies.

    Args:
        address: what fsspec reads, such as ``s3://bucket/features``.
        cache: folder of all copies; by default ``lavis_ext/features`` of the user's cache.

    Attributes:
        root: folder of the copies from this address.
    """

    def __init__(self, address: str, cache: str | None) -> None:
        self.address = address.rstrip("/")
        own = hashlib.blake2b(self.address.encode(), digest_size=8).hexdigest()
        self.root = (Path(cache).expanduser() if cache else user_cache("features")) / own

    def copy(self, stores: Sequence[FeatureStore], *, rebuild: bool = False) -> None:
        """Copy what is missing; ``rebuild`` also replaces damaged copies.

        Called by every process; one of each machine copies. Raises UserError in all of them if a
        store isn't there, can't be read or doesn't fit on the disk.
        """
        steps = self._steps(stores, rebuild) if distributed.local_rank() == 0 else iter(())
        with ProgressLine.logged(log) as line:
            # The others learn of each file: a longer wait would exceed the process group's timeout.
            while True:
                distributed.at(STORING, 0)
                text = fault = None
                try:
                    text = next(steps, None)
                except UserError as error:
                    fault = str(error)
                texts, faults = zip(*distributed.gather([(text, fault)]), strict=True)
                for each in filter(None, faults):
                    raise UserError(each)
                if not any(texts):
                    return
                line.update(next(filter(None, texts)))

    def _steps(self, stores: Sequence[FeatureStore], rebuild: bool) -> Iterator[str]:
        """Copies a file at each step, and tells the progress."""
        for store in sorted(stores, key=lambda each: each.folder):  # so that runs can't deadlock
            address = Address(f"{self.address}/{store.folder.relative_to(self.root).as_posix()}")
            with store.lock() as lock:
                while not lock.taken():
                    yield f"Waiting for another process: {lock.read_note()}"
                store.begin()
                for path in store.files() if rebuild else ():
                    if altered(path):
                        path.unlink()
                        yield f"removed the damaged copy {path}"
                yield from self._copied(address, store, lock)

    def _copied(self, address: Address, store: FeatureStore, lock: Lock) -> Iterator[str]:
        files = address.files()
        index = files.get(INDEX)
        if index is None:
            raise UserError(
                f"{address.named}: there is no complete feature store. Finish the extraction, and "
                f"copy the folder there.{self._others(store)}"
            )
        kept = {path.name for path in store.files()}
        shards = {name: file for name, file in files.items() if name.endswith(SUFFIX)}
        missing = {name: file for name, file in shards.items() if name not in kept}
        total = sum(file.size or 0 for file in missing.values())
        self._check_free_space(total)
        done = 0
        # The index is last: a store with an index has all its shards.
        for name, file in [*missing.items(), (INDEX, index)]:
            _copy(address, file, store.folder / name)
            done += file.size or 0
            text = f"{address.named}: {size_in_words(done)} of {size_in_words(total)} copied"
            lock.write_note(text)
            yield text

    def _others(self, store: FeatureStore) -> str:
        """Differences from the stores that are there, for a message."""
        found = ""
        for other in Address(f"{self.address}/{store.stream}-*/{FACTS}").matching():
            with suppress(ValueError, TypeError):
                differences = store.differences(dict(parse_json(other.read())))
                where = other.text.removesuffix(f"/{FACTS}")
                found += f" {where} differs in {', '.join(differences)}." if differences else ""
        return found

    def _check_free_space(self, needed: int) -> None:
        free = free_space(self.root)
        if needed > free:
            raise UserError(
                f"{self.root}: the copy of {self.address} needs {size_in_words(needed)} and "
                f"{size_in_words(free)} are free. Free some disk space, or set another folder with "
                "run.features.cache."
            )


def _copy(address: Address, file: RemoteFile, path: Path) -> None:
    try:
        with written_aside(path) as aside:
            address.copy(file, aside)
            if path.suffix == SUFFIX and file_digest(aside) != path.stem:
                raise UserError(
                    f"{address.named}/{path.name}: the shard is damaged. Verify the store that it "
                    "was copied from (lavis_ext.features.extract --verify), and copy it again."
                )
    except OSError as error:
        raise unwritable(path.parent, error) from None
