"""Points are at the peaks of the heat map, one for each separate region."""

from typing import Any

import numpy as np
import pytest
import torch

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check
from lavis_ext.encoders.efficient_sam.prompt_encoder import PromptEncoder
from lavis_ext.models.pnp_vqa.points import PointsConfig, find_points, point_prompts, to_pixels

GRID = (12, 20)


def blobs(*centers: tuple[float, float, float], grid: tuple[int, int] = GRID) -> np.ndarray:
    """A map with Gaussian blobs of 1.5 patches at (row, column, height)."""
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    heat = np.zeros(grid)
    for row, column, height in centers:
        heat += height * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 1.5**2))
    return heat


def points(heat: Any, grid: tuple[int, int] = GRID, **changes: Any) -> list[list[int]]:
    config = PointsConfig(**changes)
    check(config, "model.points")
    return find_points(heat, grid, config).tolist()


def test_each_blob_gives_a_point_in_its_patch_the_strongest_first() -> None:
    assert points(blobs((3, 4, 0.9), (8, 15, 1.0))) == [[8, 15], [3, 4]]
    assert points(blobs((2, 3, 0.8), (9, 4, 1.0), (5, 16, 0.9))) == [[9, 4], [5, 16], [2, 3]]


@pytest.mark.parametrize("height", [1.0, 1e-12, 1e9])
def test_one_blob_gives_one_point(height: float) -> None:
    assert points(blobs((7, 11, height))) == [[7, 11]]


def test_one_wide_place_gives_one_point() -> None:
    heat = np.zeros(GRID)
    heat[4:8, 2:18] = 1
    heat[5, 14] = 1.5
    assert points(heat) == [[5, 14]]


def test_k_means_does_not_give_a_region_two_points() -> None:
    """For a long bar and a dot, the distances are smaller with the bar split."""
    heat = np.zeros(GRID)
    heat[9, :] = 1.0
    heat[6, 0] = 1.0
    found = points(heat, smoothing=0, weak_share=0)
    assert len([point for point in found if point[0] == 9]) == 1


def test_a_blob_at_the_border_gives_a_point_at_its_peak() -> None:
    assert points(blobs((0, 10, 1.0))) == [[0, 10]]
    assert points(blobs((0, 0, 1.0), (11, 19, 0.9))) == [[0, 0], [11, 19]]


def test_a_plateau_gives_its_middle() -> None:
    heat = np.zeros(GRID)
    heat[2:7, 10:15] = 1
    assert points(heat) == points(heat, smoothing=0) == [[4, 12]]
    noise = np.random.default_rng(0).uniform(0, 1e-6, GRID)
    assert points(heat * (1 + noise), smoothing=0) == [[4, 12]]


def test_a_single_hot_patch_loses_to_a_hot_place() -> None:
    heat = blobs((6, 5, 1.0))
    heat[10, 18] = 1.5
    assert points(heat) == [[6, 5]]
    assert points(heat, smoothing=0, weak_share=0)[-1] == [10, 18]


@pytest.mark.parametrize("height", [0.0, 1.0])
def test_a_flat_map_gives_no_points(height: float) -> None:
    assert points(np.full(GRID, height)) == []
    almost = np.random.default_rng(0).uniform(height, height * 1.2, GRID)
    assert points(almost) == []
    assert points(-blobs((3, 4, 1.0))) == []


def test_a_weak_cluster_is_dropped() -> None:
    heat = np.zeros(GRID)
    heat[2:7, 2:7] = 1
    heat[9, 16] = 0.9
    assert points(heat, smoothing=0, weak_share=0.1) == [[4, 4]]
    assert points(heat, smoothing=0, weak_share=0.01) == [[4, 4], [9, 16]]


def test_candidates_are_above_a_share_of_the_maximum() -> None:
    heat = blobs((3, 4, 0.6), (8, 15, 1.0))
    assert points(heat, candidate_share=0.7) == [[8, 15]]
    assert points(heat, candidate_share=0.3) == [[8, 15], [3, 4]]


def test_more_regions_than_points() -> None:
    centers = [(2, 2, 1.0), (2, 17, 0.98), (9, 2, 0.96), (9, 17, 0.94)]
    found = points(blobs(*centers), num_points=3)
    assert 1 <= len(found) <= 3
    assert all((row, column) in {c[:2] for c in centers} for row, column in found)
    assert len(points(blobs(*centers), num_points=4)) == 4
    assert points(blobs(*centers), num_points=1) == [[2, 2]]


def test_specks_do_not_shift_clusters() -> None:
    """For k-means, a dozen distant specks would be worth a cluster."""
    heat = blobs((2, 2, 0.9), (9, 2, 1.0), (5, 7, 0.8), grid=(12, 40))
    heat[::2, 36::2] = 0.6
    found = points(heat, (12, 40), smoothing=0)
    assert sorted(found) == [[2, 2], [5, 7], [9, 2]]
    assert [4, 36] in points(heat, (12, 40), smoothing=0, weak_share=0)


def test_the_order_is_that_of_clusters_not_of_regions() -> None:
    heat = blobs((6, 3, 1.0), (6, 14, 0.9), (1, 18, 0.8))
    assert points(heat, num_points=2) == [[6, 14], [6, 3]]


@pytest.mark.parametrize("seed", [2, 7, 11])
def test_points_do_not_depend_on_the_random_state(seed: int) -> None:
    """Maps of about twenty regions, on which randomly initialized k-means varies."""
    heat = np.random.default_rng(seed).uniform(size=GRID) ** 4
    found = []
    for state in range(10):
        np.random.seed(state)  # noqa: NPY002 (what SciPy's k-means would draw from)
        found.append(points(heat, smoothing=0, weak_share=0))
    assert len(found[0]) == 3
    assert all(other == found[0] for other in found)


def test_a_cluster_much_weaker_than_one_of_many_regions_is_dropped() -> None:
    heat = np.zeros(GRID)
    heat[2:10:2, 2:8:2] = 0.9
    heat[4, 4] = 1.0
    heat[6, 18] = 0.95
    assert points(heat, smoothing=0, num_points=2) == [[4, 4]]
    assert points(heat, smoothing=0, num_points=2, weak_share=0.05) == [[4, 4], [6, 18]]


def test_mirrored_and_transposed_maps_give_mirrored_and_transposed_points() -> None:
    heat = blobs((3, 4, 0.9), (8, 15, 1.0))
    assert points(heat[:, ::-1].copy()) == [[8, 19 - 15], [3, 19 - 4]]
    assert points(heat.T.copy(), grid=GRID[::-1]) == [[15, 8], [4, 3]]


def test_tensors_and_flat_maps_give_the_same() -> None:
    heat = blobs((3, 4, 0.9), (8, 15, 1.0))
    flat = torch.tensor(heat, dtype=torch.bfloat16, requires_grad=True).flatten()
    assert points(heat) == points(heat.ravel()) == points(flat)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_heat_that_is_not_finite_is_an_error(value: float) -> None:
    heat = blobs((3, 4, 1.0))
    heat[0, 0] = value
    with pytest.raises(UserError, match=r"not finite.*weights"):
        points(heat)


def test_pixels_are_the_centers_of_patches() -> None:
    # Patches of 16 x 16 pixels: pixels 0 to 15 have their middle at 7.5.
    corners = np.array([[0, 0], [2, 3]])
    assert to_pixels(corners, (3, 4), (48, 64)).tolist() == [[7.5, 7.5], [55.5, 39.5]]
    assert to_pixels(corners, (3, 4), (30, 80)).tolist() == [[9.5, 4.5], [69.5, 24.5]]


def test_the_prompt_encoder_places_points_at_patch_centers() -> None:
    grid = (4, 6)
    encoder = PromptEncoder(8, max_points=1)
    every = np.argwhere(np.ones(grid))
    pixels = torch.tensor(to_pixels(every, grid, (64, 96)).copy()).float()[:, None]
    tokens = encoder(pixels, torch.ones(len(every), 1, dtype=torch.int64), (64, 96))
    expected = encoder.grid_positions(grid) + encoder.point_embeddings.weight
    torch.testing.assert_close(tokens[:, 0], expected, atol=1e-5, rtol=0)


def test_prompts_are_padded_and_their_labels_are_no_scores() -> None:
    maps = [blobs((3, 4, 0.9), (8, 15, 1.0)), np.zeros(GRID), blobs((0, 19, 1.0))]
    heat = torch.tensor(np.stack(maps)).flatten(1).float()
    prompts = point_prompts(heat, GRID, (12 * 8, 20 * 8), PointsConfig())
    none = [-1.0, -1.0]
    assert prompts.points.tolist() == [
        [[123.5, 67.5], [35.5, 27.5], none],
        [none, none, none],
        [[155.5, 3.5], none, none],
    ]
    assert prompts.labels.tolist() == [[1, 1, -1], [-1, -1, -1], [1, -1, -1]]
    assert prompts.points.dtype == torch.float32
    assert prompts.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"smoothing": -1.0}, r"smoothing is -1\.0"),
        ({"candidate_share": 0.0}, r"candidate_share is 0\.0"),
        ({"weak_share": 1.5}, r"weak_share is 1\.5"),
    ],
)
def test_wrong_configs_name_their_key(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.points\.{message}"):
        points(np.zeros(GRID), **changes)
