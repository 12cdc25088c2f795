"""Each stage equals what LAVIS itself computed; ``tests/make_lavis_references.py`` wrote that."""

from pathlib import Path

import pytest
import torch

from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests import lavis_references as about
from tests.lavis_stages import STAGES, TRANSFORMERS_EPS, build, differences, outputs

TOLERANCES = {"questions": 0, "passages": 0, "answers": 0, "pixels": 1.001}
"""In a resized picture, torch's rounding differs from Pillow's by one level."""
TOLERANCE = 1e-4
"""Of heat as a share of its maximum, of probabilities times the number of patches, and of logits
between -10 and 10."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PnpVqaFusion:
    return build(tmp_path_factory.mktemp("weights"))


def test_every_stage_is_laviss(model: PnpVqaFusion) -> None:
    found = differences(outputs(model))
    assert found.keys() == STAGES.keys()
    for stage, name in STAGES.items():
        assert found[stage] <= TOLERANCES.get(name, TOLERANCE), stage


def test_the_references_are_not_trivial() -> None:
    numbers, told = about.arrays(), about.texts()
    assert numbers["scores"].std() > 20 * TOLERANCE
    assert len({*told["answers_1"], *told["answers_2"]}) > 2
    for block in about.BLOCKS:
        heat = torch.from_numpy(numbers[f"heat_{block}"])
        assert heat[about.EMPTY].isnan().all(), "LAVIS has no heat for a question without words"
        assert (heat[about.READ] > 0).any(dim=1).all()
    assert told["longest"] == "RuntimeError"
    assert told["empty"] == "RuntimeError"


def test_another_epsilon_shows(tmp_path: Path) -> None:
    found = differences(outputs(build(tmp_path, TRANSFORMERS_EPS)))
    assert found["image tokens, matching"] > 10 * TOLERANCE
