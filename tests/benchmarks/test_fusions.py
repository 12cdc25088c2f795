"""The table of what fusions cost."""

from pathlib import Path

import pytest

from benchmarks.fusions import BASE, FUSIONS, cost, table
from lavis_ext.fusion.stream_adapter import StreamLayout

pytestmark = pytest.mark.beyond_core

PAGE = Path(__file__).parents[2] / "docs" / "fusions.md"


def test_the_page_has_the_table_of_this_code() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.fusions"


def test_parameters_and_flops_of_a_fusion() -> None:
    found = cost({"name": "channel_concat", "gate": False}, BASE, StreamLayout(256, (64, 64), 0))
    assert found.parameters == 2 * 1024 + (1024 + 1) * 768 + (768 + 1) * 768
    assert found.flops == 2 * 577 * (1024 * 768 + 768 * 768)
    assert "difnet, the paper's" in FUSIONS
