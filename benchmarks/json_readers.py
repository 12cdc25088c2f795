"""Compare the reader of question files with JSON libraries that could replace it.

    pip install ijson orjson pysimdjson
    python -m benchmarks.json_readers output/json_readers --records 1000000

Writes synthetic records in GQA's format to one file of the size of a ``train_all_questions`` shard
(it is reused), reads it once with each reader and prints records per CPU second, and the process's
peak growth in MB of 2**20 bytes. Each reader has a separate process and yields every record as a
dict; ours also yields its text and computes the file's hash.
"""

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.processes import command, environment
from benchmarks.question_store import MB, write_shards
from lavis_ext.datasets.questions.json_records import CHUNK, RecordFile

Records = Iterator[tuple[str | None, Any]]


def ours(path: Path) -> Records:
    """Yield the records of ``RecordFile``."""
    return ((name, record) for name, record, _ in RecordFile(path))


def ijson(path: Path) -> Records:
    """Yield the records of ijson's fastest backend."""
    backend = importlib.import_module("ijson").get_backend("yajl2_c")
    with path.open("rb") as file:
        yield from backend.kvitems(file, "", use_float=True, buf_size=CHUNK)


def orjson(path: Path) -> Records:
    """Yield the records of orjson, which reads whole documents only."""
    yield from importlib.import_module("orjson").loads(path.read_bytes()).items()


def simdjson(path: Path) -> Records:
    """Yield the records of pysimdjson, which parses whole documents of up to 4 GB."""
    document = importlib.import_module("simdjson").Parser().load(str(path))
    for name, record in document.items():
        yield name, record if isinstance(record, dict) else record.as_dict()


READERS: dict[str, Callable[[Path], Records]] = {
    reader.__name__: reader for reader in (ours, ijson, orjson, simdjson)
}


def read(reader: str, path: Path) -> dict[str, float]:
    """Read a file in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = time.process_time()
    records = sum(1 for _ in READERS[reader](path))
    used = time.process_time() - used
    return {
        "records": records,
        "records_per_cpu_second": round(records / used),
        "grows_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MB,
    }


def main() -> None:
    """Write the file, read it with each reader, and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--only", choices=READERS, help="only one reader, in this process")
    options = parser.parse_args()
    folder = options.out / f"synthetic_{options.records}"
    if not folder.is_dir():
        write_shards(folder, options.records, shards=1)
    (path,) = folder.glob("*.json")
    if options.only:
        print(json.dumps(read(options.only, path)))
        return
    found = {}
    for reader in READERS:
        done = subprocess.run(
            command(["-m", "benchmarks.json_readers", *sys.argv[1:], "--only", reader]),
            env=environment(threads=1),
            check=True,
            stdout=subprocess.PIPE,
        )
        found[reader] = json.loads(done.stdout)
    print(json.dumps({"file_mb": path.stat().st_size / MB, **found}, indent=1))


if __name__ == "__main__":
    main()
