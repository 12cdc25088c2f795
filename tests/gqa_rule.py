"""Predictions and attentions that follow a rule, for GQA's own evaluation script and for ours."""

import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np

MAP_SIZE = 7
NEITHER = "umbrella"
"""An answer that is neither valid nor plausible anywhere in mini-GQA."""


def prediction(question_id: str, answer: str, choices: dict[str, list[str]]) -> str:
    """60 % right; the rest plausible, valid, or neither."""
    rng = random.Random(zlib.crc32(question_id.encode()))
    kind = rng.random()
    if kind < 0.6:
        return answer
    if kind < 0.8:
        return rng.choice(sorted(choices["plausible"]))
    return rng.choice(sorted(choices["valid"])) if kind < 0.92 else NEITHER


def spatial_map(question_id: str) -> list[list[float]]:
    """A map whose values sum to 1."""
    values = _rng(question_id).random((MAP_SIZE, MAP_SIZE)) ** 4
    return (values / values.sum()).tolist()


def regions(question_id: str) -> list[list[float]]:
    """Three to eight boxes with attentions that sum to 1."""
    rng = _rng(question_id)
    count = int(rng.integers(3, 9))
    low = rng.random((count, 2)) * 0.8
    high = low + 0.05 + rng.random((count, 2)) * (0.95 - low)
    attention = rng.random((count, 1))
    return np.hstack([low, high, attention / attention.sum()]).tolist()


def write_files(questions: Path, choices: Path, out: Path) -> None:
    """``predictions.json``, ``maps.json`` and ``regions.json`` for all questions of a file."""
    records = json.loads(questions.read_text())
    given = json.loads(choices.read_text())
    out.mkdir(parents=True, exist_ok=True)
    predicted = {name: prediction(name, r["answer"], given[name]) for name, r in records.items()}
    _write(out / "predictions.json", "prediction", predicted)
    _write(out / "maps.json", "attention", {name: spatial_map(name) for name in records})
    _write(out / "regions.json", "attention", {name: regions(name) for name in records})


def _write(path: Path, key: str, values: dict[str, Any]) -> None:
    path.write_text(json.dumps([{"questionId": n, key: value} for n, value in values.items()]))


def _rng(question_id: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(question_id.encode()))
