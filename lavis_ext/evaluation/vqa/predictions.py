"""Write answers in the formats of the challenge servers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.common.files import write_json
from lavis_ext.datasets.vqa.dataset import Benchmark


def result_of(benchmark: Benchmark, predictions: Mapping[str, str]) -> Any:
    """Content of a results file.

    VQA's is ``[{"question_id": 9000, "answer": "red"}, ...]``, with numeric ids as numbers;
    VizWiz's has ``image`` in place of the id; A-OKVQA's is ``{id: {"direct_answer": "red"}}``.
    """
    if benchmark is Benchmark.AOKVQA:
        return {name: {"direct_answer": answer} for name, answer in predictions.items()}
    if benchmark is Benchmark.VIZWIZ:
        return [{"image": name, "answer": answer} for name, answer in predictions.items()]
    return [
        {"question_id": _number(name), "answer": answer} for name, answer in predictions.items()
    ]


def write_results(path: Path, benchmark: Benchmark, predictions: Mapping[str, str]) -> None:
    """Write answers by question id in the format of ``result_of``."""
    write_json(path, result_of(benchmark, predictions))


def _number(name: str) -> int | str:
    """Convert an id to a number unless that changes it ("007")."""
    numeric = name.isascii() and name.isdecimal() and len(name) < 19
    return int(name) if numeric and str(int(name)) == name else name
