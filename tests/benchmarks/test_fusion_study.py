"""The study of fusions compares runs by seed and image, and repeats none."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fusion_study
from lavis_ext.evaluation.by_image import BY_IMAGE, ByImage

IMAGES = [str(image) for image in range(40)]
SHARES = {"first_only": 0.5, "difnet": 0.8, "others in windows": 0.5}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were run, by a stand-in for train.py and evaluate.py."""
    commands = []

    def run(command: list[str], **options: Any) -> None:
        commands.append(command)
        (where,) = (Path(each[15:]) for each in command if each.startswith("run.output_dir="))
        fusion, _, seed = where.name.replace("-in-", " in ").rpartition("-")
        share = SHARES[fusion] + 0.01 * int(seed)
        folder = where / "run"
        folder.mkdir(parents=True)
        metrics = {"answer_accuracy": share, "pointing_accuracy": share}
        (folder / "metrics.json").write_text(json.dumps({"testdev": metrics}))
        values = {name: np.full(len(IMAGES), each) for name, each in metrics.items()}
        ByImage.of(values, IMAGES).write(folder / f"testdev{BY_IMAGE}")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_fusions_are_compared_with_the_first_stream_alone(
    started: list[list[str]], tmp_path: Path
) -> None:
    asked = [str(tmp_path), "--fusions", "difnet", "others in windows", "--seeds", "1", "2"]
    given = fusion_study.parse_arguments([*asked, "--studies", "fine-answer", "fine-pointing"])
    found = fusion_study.measure(given)
    assert set(found["fine-answer"]) == set(SHARES)
    difference = found["fine-pointing"]["difnet"].difference
    assert difference is not None
    assert difference.value == pytest.approx(0.3)
    assert difference.low is not None
    assert difference.low > 0.2
    assert len(started) == 18, "two trainings and an evaluation of each fusion with each seed"
    evaluated = [each for each in started if "evaluate.py" in each]
    assert all(any("fusion_encoder_best" in part for part in each) for each in evaluated)
    windows = next(each for each in started if "model.fusion.first=false" in each)
    assert "model.fusion.name=channel_concat" in windows
    text = (tmp_path / "tables.md").read_text()
    assert "| `difnet` | 81.5 ± 0.7 | +30.0 (" in text
    assert "fine: pointing" in (tmp_path / "differences.svg").read_text()
    fusion_study.measure(given)
    assert len(started) == 18, "nothing is repeated"
