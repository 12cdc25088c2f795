"""The files of GQA's evaluation script besides predictions: choices and attentions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext.common.errors import UserError, shortened
from lavis_ext.datasets.questions.record_files import keyed_records
from lavis_ext.datasets.questions.values import kind
from lavis_ext.evaluation.gqa.choices import AnswerChoices
from lavis_ext.evaluation.gqa.grounding import Attention, map_cells
from lavis_ext.evaluation.gqa.predictions import read_by_question

CHOICES_FORMAT = (
    'an object {questionId: {"valid": [...], "plausible": [...]}, ...}, or a list of such records '
    "with `questionId`"
)
MAPS_FORMAT = 'a list of {"questionId": ..., "attention": [[a, ...], ...]}'
REGIONS_FORMAT = 'a list of {"questionId": ..., "attention": [[x0, y0, x1, y1, a], ...]}'


def read_choices(path: Path) -> Iterator[tuple[str, AnswerChoices]]:
    """Yield id and choices of each question in GQA's choices file. Raises UserError."""
    for name, record in keyed_records(path, "choices file", CHOICES_FORMAT):
        choices = record if isinstance(record, dict) else {}
        valid, plausible = choices.get("valid"), choices.get("plausible")
        if not (isinstance(valid, list) and isinstance(plausible, list)):
            raise UserError(
                f"{path}: expected {CHOICES_FORMAT}, but question {shortened(name)} has no such "
                "lists."
            )
        yield name, AnswerChoices(valid, plausible)


def read_attentions(
    path: Path, object_features: bool, map_size: int | None = None
) -> Iterator[tuple[str, Attention]]:
    """Yield id and attended regions [R, 5] of each question.

    Spatial maps must all have the same size, ``map_size`` x ``map_size`` if given. Raises UserError
    for a file of another format, spatial maps of different sizes, and invalid values.
    """
    size: tuple[int, ...] | None = None
    expected = REGIONS_FORMAT if object_features else MAPS_FORMAT
    for name, value in read_by_question(path, ["attention"], "file of attentions", expected):
        attention = _numbers(value, shortened(name), path, expected)
        if object_features:
            _check_regions(attention, shortened(name), path)
            yield name, attention
            continue
        if map_size is not None and attention.shape != (map_size, map_size):
            raise UserError(
                f"{path}: the map of question {name} is {_size(attention.shape)}, not "
                f"{map_size}x{map_size} (--mapSize). Leave the option out for maps of any size."
            )
        size = size or attention.shape
        if attention.shape != size:
            raise UserError(
                f"{path}: the maps differ in size: question {shortened(name)} has "
                f"{_size(attention.shape)}, those before it {_size(size)}. Resize them to one size."
            )
        yield name, map_cells(attention)


def _numbers(value: Any, name: str, path: Path, expected: str) -> Attention:
    if not isinstance(value, list):
        raise UserError(
            f"{path}: expected {expected}, but `attention` of question {name} is {kind(value)}."
        )
    try:
        numbers = np.asarray(value)
    except ValueError:
        raise UserError(
            f"{path}: `attention` of question {name} is of uneven size: its rows differ in length."
        ) from None
    if numbers.ndim != 2 or not numbers.size or numbers.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: expected {expected}, but `attention` of question {name} is not rows of "
            "numbers."
        )
    if not np.isfinite(numbers).all():
        raise UserError(f"{path}: `attention` of question {name} has values that aren't finite.")
    return numbers.astype(np.float64)


def _check_regions(regions: Attention, name: str, path: Path) -> None:
    if regions.shape[1] != 5:
        raise UserError(
            f"{path}: a region of question {name} has {regions.shape[1]} numbers, not 5 (x0, y0, "
            "x1, y1, attention); spatial maps go without --objectFeatures."
        )
    boxes = regions[:, :4]
    if boxes.min() < 0 or boxes.max() > 1 or (boxes[:, :2] >= boxes[:, 2:]).any():
        raise UserError(
            f"{path}: a region of question {name} isn't 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, "
            "in shares of the image's sides."
        )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
