"""Probes find what is in the features, and nothing that isn't."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.probes import (
    POINTS,
    Probed,
    at_objects,
    effective_rank,
    in_their_windows,
    main,
    measure,
    table,
)
from lavis_ext.datasets.gqa.scene_graphs import GraphObject, SceneGraph
from lavis_ext.encoders.base import Tokens


def test_a_linear_attribute_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    known = (np.eye(3)[labels] @ rng.normal(size=(3, 8)) + 0.1 * rng.normal(size=(600, 8))).astype(
        np.float32
    )
    noise = rng.normal(size=(600, 8)).astype(np.float32)
    values: list[str | None] = [
        None if n % 5 == 0 else "abc"[label] for n, label in enumerate(labels)
    ]
    probed = Probed(np.arange(600) // 3, {"letter": values}, {"known": known, "noise": noise})
    metrics = measure(probed, seeds=2)
    assert min(metrics["known"]["letter"]) > 0.95
    assert max(metrics["noise"]["letter"]) < 0.5
    assert max(metrics["most frequent"]["letter"]) < 0.5
    assert metrics["known"] == measure(probed, seeds=2)["known"]
    assert table(metrics).splitlines()[0] == "| attribute | most frequent | known | noise |"


def test_tokens_are_read_at_the_place_of_an_object() -> None:
    """In a map of coordinates, the token at a place is the place."""
    centers = (torch.arange(8) + 0.5) * 16
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    values = torch.stack([x, y], dim=-1).reshape(1, 64, 2)
    values = torch.cat([torch.full((1, 1, 2), -1.0), values], dim=1)
    item = GraphObject("1", "coin", (40, 60, 20, 10), (), ())
    graph = SceneGraph(128, 128, None, None, (item,))
    found = at_objects(Tokens(values, (8, 8), 1), [graph]).view(len(POINTS), 2)
    expected = torch.tensor([[40 + 20 * x, 60 + 10 * y] for x, y in POINTS])
    torch.testing.assert_close(found, expected)


def test_a_window_is_that_of_an_objects_center() -> None:
    values = torch.arange(64.0).view(1, 64, 1)
    item = GraphObject("1", "coin", (40, 60, 20, 10), (), ())  # its center is (50, 65)
    graph = SceneGraph(128, 128, None, None, (item,))
    found = in_their_windows(Tokens(values, (8, 8), 0), (4, 4), [graph])
    assert found.tolist() == [[34, 35, 42, 43]]


def test_the_effective_rank_counts_directions_of_variance() -> None:
    directions = torch.randn(4000, 6) @ torch.linalg.qr(torch.randn(6, 6)).Q
    assert effective_rank(directions) == pytest.approx(6, abs=0.1)
    directions[:, 2:] = 0
    assert effective_rank(directions) == pytest.approx(2, abs=0.1)


def test_the_command_writes_metrics_and_a_table(
    mini_gqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path / "out"), "--data", str(mini_gqa), "--images", "30", "--seeds", "2"])
    printed = capsys.readouterr().out
    assert "| color |" in printed
    assert "segmentation, window" in printed
    assert "Effective rank: grid " in printed
    assert (tmp_path / "out" / "metrics.json").is_file()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--data", str(tmp_path)])
    assert "no mini-GQA" in capsys.readouterr().err
