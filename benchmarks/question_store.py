"""Measure the question store: conversion, opening, and memory of a process with loader workers.

    python -m benchmarks.question_store output/question_store --records 14300000

Writes synthetic records in GQA's format to ten shards in the folder (about 11 GB for the size of
GQA's ``train_all_questions``; they are reused), converts them and prints the metrics as JSON. Each
metric is measured in a separate process. Memory is in MB of 2**20 bytes. The memory of four workers
and their process is the sum of their proportional shares (PSS) after ``--batches`` batches, minus
that for a data set of ten questions.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.processes import command, environment
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.datasets.questions.mismatched import MismatchedQuestions
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.samplers import BatchRows, TrainBatches

SHARDS = 10
QUESTIONS_AN_IMAGE = 168
"""Number of shards of GQA's ``train_all_questions``."""
BATCH = 256
WORKERS = 4
MB = 2**20


def write_shards(folder: Path, records: int, shards: int = SHARDS) -> None:
    """Write ``records`` records in GQA's format and of GQA's length, one line per shard."""
    folder.mkdir(parents=True)
    share = -(-records // shards)
    for shard in range(shards):
        with (folder / f"{folder.name}_{shard}.json").open("w", encoding="utf-8") as file:
            separator = "{"
            for number in range(shard * share, min((shard + 1) * share, records)):
                file.write(f'{separator}"{number:09d}": {_record(number)}')
                separator = ", "
            file.write("}")


def _record(number: int) -> str:
    rng = random.Random(number)
    one, two, three = (f"{rng.choice(SYLLABLES)}{rng.choice(SYLLABLES)}" for _ in range(3))
    first, second = rng.randrange(10**6), rng.randrange(10**6)
    image = 2300000 + number // QUESTIONS_AN_IMAGE
    relation = rng.choice(("to the left of", "to the right of", "on", "behind", "near"))
    verb, answer = rng.choice((("Is", "yes"), ("Is", "no"), ("Was", "yes"), ("Could", "no")))
    near = ", ".join(f'"{max(number + step, 0):09d}"' for step in range(-2, 3))
    return (
        f'{{"semantic": [{{"operation": "select", "dependencies": [], "argument": "{one} ({first})"'
        f'}}, {{"operation": "relate", "dependencies": [0], "argument": "{two},{relation},s '
        f'({second})"}}, {{"operation": "exist", "dependencies": [1], "argument": "?"}}], '
        f'"entailed": [{near}], "equivalent": ["{number:09d}"], "question": "{verb} there a {two} '
        f'{three} {relation} the {one}?", "imageId": "{image}", "isBalanced": false, "groups": '
        f'{{"global": null, "local": "{number % 10}-{one}_{two}"}}, "answer": "{answer}", '
        f'"semanticStr": "select: {one} ({first})->relate: {two},{relation},s ({second}) [0]->exist'
        f': ? [1]", "annotations": {{"answer": {{}}, "question": {{"4": "{first}", "9": "{second}"'
        f'}}, "fullAnswer": {{"4": "{first}"}}}}, "types": {{"detailed": "existRelS", "semantic": '
        f'"rel", "structural": "verify"}}, "fullAnswer": "{answer}, there is a {two} {relation} '
        f'the {one}."}}'
    )


SYLLABLES = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in ("", "n", "r", "s")]


def convert(source: Path, store: Path) -> dict[str, float]:
    """Convert the shards, in this process."""
    size = sum(file.stat().st_size for file in source.glob("*.json"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, used = time.perf_counter(), time.process_time()
    records = len(read_questions(source, store))
    seconds, used = time.perf_counter() - started, time.process_time() - used
    return {
        "records": records,
        "json_mb": size / MB,
        "store_mb": sum(f.stat().st_size for f in store.rglob("*.questions.arrow")) / MB,
        "structure_mb": sum(f.stat().st_size for f in store.rglob("*.records.arrow")) / MB,
        "seconds": seconds,
        "records_per_second": records / seconds,
        "records_per_cpu_second": records / used,
        "mb_before": before,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def open_converted(source: Path, store: Path) -> dict[str, float]:
    """Time opening the store and preparing negatives, as at the start of a run."""
    started = time.perf_counter()
    table = read_questions(source, store)
    table.text("question", len(table) - 1)
    opened = time.perf_counter()
    MismatchedQuestions(table, count=1, hard=True, seed=0)
    return {"open_seconds": opened - started, "negatives_seconds": time.perf_counter() - opened}


class _Questions(Dataset[list[str]]):
    """The training data set without its images."""

    def __init__(self, table: QuestionTable) -> None:
        self.table = table
        self.mismatched = MismatchedQuestions(table, count=1, hard=False, seed=0)

    def __getitems__(self, batch: BatchRows) -> list[str]:
        drawn = [row for each in batch.rows for row in self.mismatched.draw(int(each), batch.epoch)]
        columns = self.table.texts(batch.rows, "question_id", "image_id", "question", "answer")
        return [
            str(text)
            for column in (*columns, *self.table.texts(drawn, "question"))
            for text in column
        ]


def load(source: Path, store: Path, batches: int, rows: int | None) -> dict[str, float]:
    """Memory of this process with its workers, and batches per second."""
    table = read_questions(source, store)
    if rows is not None:
        table = table.take(np.arange(0, len(table), len(table) // rows)[:rows])
    dataset = _Questions(table)
    order = TrainBatches(table.codes("image_id"), batch_size=BATCH, examples_per_image=16, seed=0)
    loader = DataLoader(
        dataset,
        batch_sampler=cast(Any, _Repeated(order, batches)),
        num_workers=WORKERS,
        collate_fn=list,
    )
    started, held = time.perf_counter(), 0.0
    for number, _ in enumerate(loader):
        if number % 100 == 99 or number == batches - 1:
            held = max(held, _proportional_share())
    return {
        "held_mb": held,
        "batches_per_second": batches / (time.perf_counter() - started),
        "peak_rss_of_main_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class _Repeated:
    """A batch sampler repeated up to a number of batches."""

    def __init__(self, order: TrainBatches, batches: int) -> None:
        self._order = order
        self._batches = batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[BatchRows]:
        left = self._batches
        while left:
            for batch in self._order:
                yield batch
                left -= 1
                if not left:
                    return


def _proportional_share() -> float:
    """PSS in MB of this process and its children, which counts shared pages once."""
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    total = 0
    for process in (str(me), *children):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(rollup.split("\nPss:")[1].split()[0])
    return total / 1024


def main() -> None:
    """Write, convert, open and load, and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=14_300_000)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument(
        "--only", choices=("convert", "open", "load", "load_few"), help="one metric"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    source = options.out / f"synthetic_{options.records}_questions"
    store = options.out / "store"
    if not source.is_dir():
        aside = options.out / f".{source.name}" / source.name
        shutil.rmtree(aside.parent, ignore_errors=True)
        write_shards(aside, options.records)
        aside.rename(source)
        aside.parent.rmdir()
    if options.only:
        measure: dict[str, Any] = {
            "convert": lambda: convert(source, store),
            "open": lambda: open_converted(source, store),
            "load": lambda: load(source, store, options.batches, None),
            "load_few": lambda: load(source, store, options.batches, 10),
        }
        print(json.dumps(measure[options.only]()))
        return
    shutil.rmtree(store, ignore_errors=True)
    found: dict[str, dict[str, float]] = {}
    for name in ("convert", "open", "load", "load_few"):
        done = subprocess.run(
            command(["-m", "benchmarks.question_store", *sys.argv[1:], "--only", name]),
            env=environment(threads=1),
            check=True,
            stdout=subprocess.PIPE,
        )
        found[name] = json.loads(done.stdout)
    found["load"]["held_for_questions_mb"] = found["load"]["held_mb"] - found["load_few"]["held_mb"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
