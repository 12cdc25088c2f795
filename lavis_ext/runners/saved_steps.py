"""Results of evaluated batches in the run's folder, from which a killed evaluation continues.

    evaluation.json             what is evaluated: weights, examples, config
    SPLIT_steps_rankR.jsonl     one line per batch of rank R, appended as soon as it is evaluated

Nothing is rewritten, and a line cut off by a kill is dropped. A line's checksum includes the key of
its weights and examples, so lines of another evaluation don't count. Files are written by each rank
on its own machine: the ranks don't wait for each other, and need no common folder.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lavis_ext import distributed
from lavis_ext.common.files import Appended, parse_json, read_object
from lavis_ext.datasets.faults import UnreadableImage
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.distributed.sharding import whole
from lavis_ext.models.base import TrainableModel
from lavis_ext.runners.retries import Retries, unwritable
from lavis_ext.tasks.base import EvalStep

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
"""File of an evaluation's facts; a run without it has no saved batches."""
FORMAT = "lavis_ext.evaluation.1"
STEPS = "_steps_rank"
SUFFIX = ".jsonl"
CHECKSUM = 8
"""Hexadecimal digits of a line's CRC32."""


class SavedStep(NamedTuple):
    """A saved batch: its rows in the data set, its results and its unreadable images."""

    rows: list[int]
    step: EvalStep
    unreadable: list[UnreadableImage]


class SavedSteps:
    """Saved batches of a split, and the batches that are left. Constructed by all ranks together.

    Args:
        folder: the run's folder, which is created where ranks have a disk of their own.
        split: the split's name.
        key: identifies weights and examples.
        batches: this rank's batches of an undisturbed evaluation.
        writes: whether this rank's results count.

    Attributes:
        left: this rank's batches without their saved rows.
        earlier: this rank's share of the saved batches.
        count: number of saved rows over all ranks.
    """

    def __init__(
        self, folder: Path, split: str, key: str, batches: Sequence[BatchRows], *, writes: bool
    ) -> None:
        self._key = key.encode()
        self._path = folder / f"{split}{STEPS}{distributed.rank()}{SUFFIX}"
        saved: set[int] = set()
        self.earlier: list[SavedStep] = []
        for rank, text in self._of_all_ranks(folder, split):
            record = parse_json(text)
            if saved.isdisjoint(record["rows"]):
                saved.update(record["rows"])
                # With as many ranks as before, each has its own batches in their order, so that
                # sums have the same bits.
                if writes and rank % distributed.world_size() == distributed.rank():
                    self.earlier.append(_saved_step(record))
        self.count = len(saved)
        self.left = [*_without(batches, np.fromiter(saved, np.int64, len(saved)))]
        self._rows = iter(self.left)
        self._retries = Retries()
        self._file: Appended | None = None
        if writes:
            self._open(folder)

    def add(self, step: EvalStep, samples: Mapping[str, Any]) -> None:
        """Save the results of the next batch of ``left``."""
        rows = next(self._rows).rows
        if self._file is None:
            return
        try:
            text = json.dumps(_record(rows, step, samples.get("unreadable", ()))).encode()
        except TypeError as error:
            log.warning(
                "The results of this task can't be saved (%s), so this evaluation would start over "
                "if it were interrupted. Return JSON values in EvalStep.by_id.",
                error,
            )
            self.close()
            return
        try:
            self._file.append(b"%08x %s\n" % (self._checksum(text), text))
        except OSError as error:
            self._unwritable(error)
        else:
            self._retries.worked(f"{self._path} is writable again; pending results are written")

    def close(self) -> None:
        """Close the file of this rank."""
        if self._file is not None:
            with suppress(OSError):
                self._file.flush()
            self._file.close()
            self._file = None

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole_lines = sum(len(line) for line in self._lines(self._path))
            self._file = Appended(self._path, whole_lines)
        except OSError as error:
            self._unwritable(error)

    def _unwritable(self, error: OSError) -> None:
        self._retries.failed(
            unwritable(self._path, error),
            "The evaluation continues; if it is interrupted, unsaved questions are repeated.",
        )

    def _of_all_ranks(self, folder: Path, split: str) -> list[tuple[int, bytes]]:
        """Saved lines of all ranks with the rank that wrote them, in the order of ranks."""
        found = []
        if distributed.local_rank() == 0:  # one reader per machine
            prefix = f"{split}{STEPS}"
            for path in folder.glob(f"{escape(prefix)}*{SUFFIX}"):
                number = path.name.removeprefix(prefix).removesuffix(SUFFIX)
                if number.isdecimal():
                    found += [(int(number), line[CHECKSUM + 1 :]) for line in self._lines(path)]
        return sorted(distributed.gather(found), key=lambda each: each[0])

    def _lines(self, path: Path) -> Iterator[bytes]:
        """Lines of a file up to the first one that is damaged or of another evaluation."""
        try:
            with path.open("rb") as file:
                for line in file:
                    checksum, _, text = line.partition(b" ")
                    if checksum != b"%08x" % self._checksum(text[:-1]) or text[-1:] != b"\n":
                        return
                    yield line
        except OSError:  # nothing saved that can be read
            return

    def _checksum(self, text: bytes) -> int:
        return zlib.crc32(text, zlib.crc32(self._key))


def evaluation_facts(
    model: TrainableModel, datasets: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Facts that determine an evaluation's results. Called by every rank.

    Hashing the weights takes about a second per gigabyte.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        contents = whole(tensor)  # from all ranks, if it's sharded
        if distributed.is_main_process():
            digest.update(f"{name} {contents.dtype} {[*contents.shape]}\n".encode())
            on_host = contents.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(on_host.numpy().data)
    return {
        "format": FORMAT,
        "weights": distributed.broadcast(digest.hexdigest()),
        "examples": {split: dataset.contents() for split, dataset in datasets.items()},
        "config": dict(config),
    }


def key_of(facts: Mapping[str, Any], split: str) -> str:
    """Key of the evaluation of a split."""
    return f"{facts['format']} {facts['weights']} {facts['examples'][split]}"


def saved_facts(folder: Path) -> dict[str, Any] | None:
    """Facts of the saved evaluation in ``folder``; None if there is none of this version."""
    facts = read_object(folder / EVALUATION) or {}
    known = facts.get("format") == FORMAT and isinstance(facts.get("config"), dict)
    return facts if known else None


def remove_saved_steps(folder: Path) -> None:
    """Remove the saved batches of a finished evaluation."""
    for path in [folder / EVALUATION, *folder.glob(f"*{STEPS}*{SUFFIX}")]:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _without(batches: Sequence[BatchRows], saved: np.ndarray) -> Iterator[BatchRows]:
    for batch in batches:
        rows = batch.rows[~np.isin(batch.rows, saved)]
        if len(rows):
            yield BatchRows(rows, batch.epoch, len(rows))


def _record(rows: Any, step: EvalStep, unreadable: Sequence[UnreadableImage]) -> dict[str, Any]:
    sums = {
        name: [str(value.dtype).removeprefix("torch."), value.tolist()]
        for name, value in step.report.items()
    }
    return {
        "rows": rows.tolist(),
        "count": step.count,
        "sums": sums,
        "by_id": {name: dict(values) for name, values in step.by_id.items()},
        "unreadable": [[*each] for each in unreadable],
    }


def _saved_step(record: Mapping[str, Any]) -> SavedStep:
    sums = {
        name: torch.tensor(value, dtype=getattr(torch, dtype))
        for name, (dtype, value) in record["sums"].items()
    }
    unreadable = [UnreadableImage(*each) for each in record["unreadable"]]
    return SavedStep(record["rows"], EvalStep(sums, record["count"], record["by_id"]), unreadable)
