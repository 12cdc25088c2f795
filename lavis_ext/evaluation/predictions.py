"""Predictions in the format of GQA's leaderboard."""

from collections.abc import Mapping
from pathlib import Path

from lavis_ext.files import write_json


def write_predictions(path: Path, predictions: Mapping[str, str]) -> None:
    """Write answers by question id as ``[{"questionId": ..., "prediction": ...}, ...]``.

    Format: the GQA challenge page and evaluation script (Hudson and Manning, 2019).
    """
    write_json(
        path,
        [{"questionId": name, "prediction": answer} for name, answer in predictions.items()],
    )
