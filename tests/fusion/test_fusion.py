"""Fusions by their common interface: fused tokens, gradients and options."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionConfig, FusionEncoder
from lavis_ext.fusion.network import FusionNetwork
from lavis_ext.fusion.stream_adapter import StreamLayout, resize_grid
from lavis_ext.registry import registry

GRID_WIDTH, SEGMENTATION_WIDTH = 16, 12
DIFNET = {"lf": 1, "t": 2, "n": 3, "heads": 4, "d_ff": 32, "dropout": 0.0}
OPTIONS = {"difnet": DIFNET, "sum": {}, "segmentation_only": {}}
FUSIONS = ["difnet", "sum", "first_only", "others_only"]
OLD_FUSIONS = ["grid_only", "segmentation_only"]


def build(name: str = "difnet", grid_size: tuple[int, int] = (4, 4), **options: object):
    torch.manual_seed(0)
    section = {"name": name, **OPTIONS.get(name, {}), **options}
    return FusionNetwork(
        typed(registry.get_fusion_class(name).Config, section, "model.fusion"),
        {
            "grid": StreamLayout(GRID_WIDTH, grid_size, 1),
            "segmentation": StreamLayout(SEGMENTATION_WIDTH, (4, 4), 0),
        },
    )


def given(
    grid: torch.Tensor,
    segmentation: torch.Tensor | None = None,
    cells: tuple[int, int] = (4, 4),
    grid_size: tuple[int, int] = (4, 4),
) -> dict[str, Tokens]:
    """Encoders' tokens."""
    streams = {"grid": Tokens(grid, grid_size, 1)}
    if segmentation is not None:
        streams["segmentation"] = Tokens(segmentation, cells, 0)
    return streams


def tokens(cells: int = 16, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid tokens of a 4x4 grid, and segmentation tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 17, GRID_WIDTH, generator=generator),
        torch.randn(2, cells, SEGMENTATION_WIDTH, generator=generator),
    )


def train_a_step(network: FusionNetwork, learning_rate: float = 0.1) -> None:
    grid, segmentation = tokens()
    optimizer = torch.optim.SGD(network.parameters(), learning_rate)
    optimizer.zero_grad()
    (network(given(grid, segmentation)) * tokens(seed=2)[0]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["difnet", "sum"])
@pytest.mark.parametrize("d_model", [None, 24])
def test_the_gate_starts_at_exactly_blip(name: str, d_model: int | None) -> None:
    network = build(name, d_model=d_model)
    grid, segmentation = tokens()
    assert torch.equal(network(given(grid, segmentation)), grid)


def test_gradients_reach_difnet_once_the_gate_has_moved() -> None:
    network = build()
    train_a_step(network)
    assert all(not p.grad.any() for p in network.encoder.parameters())
    assert network.gate.detach().abs().min() > 0
    train_a_step(network)
    assert all(p.grad.any() for p in network.encoder.parameters())
    assert all(p.grad.any() for p in network.adapter.parameters())


@pytest.mark.parametrize("d_model", [None, 24])
@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("difnet", True),
        ("difnet", False),
        ("sum", True),
        ("sum", False),
        ("segmentation_only", False),
    ],
)
def test_every_parameter_gets_a_gradient(name: str, gate: bool, d_model: int | None) -> None:
    network = build(name, d_model=d_model, gate=gate)
    train_a_step(network)
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["difnet", "sum", "segmentation_only"])
def test_the_segmentation_stream_is_used(name: str) -> None:
    network = build(name, gate=False).eval()
    grid, segmentation = tokens()
    other = tokens(seed=3)[1]
    fused = network(given(grid, segmentation))
    assert fused.shape == grid.shape
    assert (fused - network(given(grid, other))).abs().amax(dim=(0, 2))[1:].min() > 1e-3


def test_the_order_of_streams_matters_to_a_fusion() -> None:
    network = build(gate=False).eval()
    # With other norms for each stream, as training makes them.
    with torch.no_grad():
        network.encoder.layers[0].lnorm1.weight.mul_(2)
    grid, segmentation = network.adapter(given(*tokens()))
    difference = network.encoder(grid, segmentation) - network.encoder(segmentation, grid)
    assert difference.abs().max() > 1e-2


def test_segmentation_only_does_not_read_the_grid_stream() -> None:
    network = build("segmentation_only").eval()
    (grid, segmentation), (other, _) = tokens(), tokens(seed=4)
    assert network.reads == ["segmentation"]
    assert torch.equal(network(given(grid, segmentation)), network(given(other, segmentation)))


def test_grid_only_needs_no_second_stream_and_trains_nothing() -> None:
    network = build("grid_only")
    grid, _ = tokens()
    assert network.reads == ["grid"]
    assert network(given(grid)) is grid
    assert list(network.parameters()) == []


def test_grid_only_gives_blips_own_scores(tmp_path: Path) -> None:
    from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig

    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "red"]))
    sizes = dict.fromkeys(("vision_width", "text_width"), GRID_WIDTH)
    layers = dict.fromkeys(("vision_layers", "text_layers", "vision_heads", "text_heads"), 2)
    torch.manual_seed(0)
    blip = BlipEncoder(
        BlipEncoderConfig(
            image_size=32,
            patch_size=8,
            vocab_size=9,
            tokenizer=str(vocab),
            weights=None,
            first_token="cls",
            **sizes,
            **layers,
        )
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    input_ids, mask = blip.tokenize(["red dog", "dog"])
    with torch.no_grad():
        fused = build("grid_only")({"grid": blip(images)})
        whole = blip.blip(
            input_ids=input_ids, pixel_values=blip.normalize(images), attention_mask=mask
        )
        ours = blip.match(fused, blip.pack(["red dog", "dog"]))
    torch.testing.assert_close(ours, whole.itm_score, atol=1e-5, rtol=0)


@pytest.fixture
def weighted_sum() -> Iterator[str]:
    @dataclass
    class WeightedSumConfig(FusionConfig):
        start: float = option(0.5, "weight of the others at the start")

    @registry.register_fusion("weighted_sum")
    class WeightedSum(FusionEncoder):
        Config = WeightedSumConfig

        def __init__(self, config: WeightedSumConfig, d_model: int) -> None:
            super().__init__(config, d_model)
            self.weight = nn.Parameter(torch.tensor(config.start))

        def forward(self, first: torch.Tensor, *others: torch.Tensor):
            return first + self.weight * sum(others)

    yield "weighted_sum"
    del registry.mapping["fusion_name_mapping"]["weighted_sum"]


def test_a_new_fusion(weighted_sum: str) -> None:
    network = build(weighted_sum, start=0.25)
    grid, segmentation = tokens()
    assert torch.equal(network(given(grid, segmentation)), grid)
    train_a_step(network)
    train_a_step(network)
    assert network.encoder.weight != 0.25
    plain = build(weighted_sum, start=0.25, gate=False)
    _, adapted = plain.adapter(given(grid, segmentation))
    torch.testing.assert_close(plain(given(grid, segmentation)), grid + 0.25 * adapted)


@pytest.mark.parametrize("name", ["difnet", "sum", "others_only"])
def test_a_third_stream_is_read_too(name: str) -> None:
    torch.manual_seed(0)
    section = {"name": name, **OPTIONS.get(name, {}), "gate": False}
    network = FusionNetwork(
        typed(registry.get_fusion_class(name).Config, section, "model.fusion"),
        {
            "grid": StreamLayout(GRID_WIDTH, (4, 4), 1),
            "segmentation": StreamLayout(SEGMENTATION_WIDTH, (4, 4), 0),
            "third": StreamLayout(6, (2, 2), 2),
        },
    ).eval()
    two = given(*tokens())
    fused = [
        network({**two, "third": Tokens(torch.full((2, 6, 6), value), (2, 2), 2)})
        for value in (0.0, torch.rand(1).item())
    ]
    fused.append(network({**two, "third": Tokens(torch.randn(2, 6, 6), (2, 2), 2)}))
    assert fused[0].shape == two["grid"].values.shape
    assert not torch.allclose(fused[0], fused[2])
    fused[2].sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


# --- bringing the streams together ---------------------------------------------------------------


def ramp(rows: int, columns: int) -> torch.Tensor:
    """Tokens [1, rows*columns, 2] that are their own position: the center of the cell in 0..1."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack((y, x), dim=-1).view(1, -1, 2)


@pytest.mark.parametrize(
    ("source", "target"),
    [((6, 6), (24, 24)), ((24, 24), (6, 6)), ((6, 10), (12, 5)), ((4, 4), (4, 4))],
)
def test_tokens_keep_their_position_in_the_image(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    resized = resize_grid(ramp(*source), source, target)
    expected = ramp(*target)
    border = 0.5 / min(*source, *target)
    inside = ((expected > border) & (expected < 1 - border)).all(dim=-1)
    torch.testing.assert_close(resized[inside], expected[inside], atol=1e-5, rtol=0)


def test_shrinking_loses_no_token() -> None:
    tokens = torch.zeros(36, 36, 1)
    tokens[torch.arange(36), torch.arange(36)] = 1.0
    assert resize_grid(tokens, (6, 6), (2, 2)).amax(dim=(1, 2)).min() > 0


def test_a_grid_is_shrunk_in_bfloat16_too() -> None:
    tokens = ramp(6, 6)
    found = resize_grid(tokens.bfloat16(), (6, 6), (3, 3))
    assert found.dtype == torch.bfloat16
    expected = resize_grid(tokens, (6, 6), (3, 3))
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)


def test_a_wide_segmentation_grid_meets_a_tall_grid() -> None:
    network = build(gate=False, grid_size=(8, 2)).eval()
    grid, segmentation = tokens(cells=15)
    assert network(given(grid, segmentation, (3, 5), (8, 2))).shape == grid.shape
    with pytest.raises(UserError, match=r"has 15 tokens.*4x4 make 16"):
        network(given(grid, segmentation, (4, 4), (8, 2)))


def test_a_missing_stream_and_one_of_another_size_are_errors() -> None:
    grid, segmentation = tokens()
    with pytest.raises(UserError, match=r"has 10 tokens.*4x4 make 17"):
        build()(given(grid[:, :10], segmentation))
    with pytest.raises(UserError, match="reads the stream 'segmentation'"):
        build()(given(grid))


# --- configs -------------------------------------------------------------------------------------


def test_all_fusions_are_registered() -> None:
    assert {*FUSIONS, *OLD_FUSIONS} <= set(registry.list_fusions())
    assert all(registry.get_fusion_class(name).Config().name == name for name in FUSIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "difnett"}, "difnett.*Did you mean 'difnet'"),
        ({"head": 4}, r"model\.fusion\.head.*Did you mean 'heads'"),
        ({"name": "sum", "heads": 4}, r"model\.fusion\.heads"),
        ({"name": "grid_only", "gate": True}, r"model\.fusion\.gate"),
        ({"name": "grid_only", "d_model": 24}, r"model\.fusion\.d_model"),
        ({"lf": 3}, r"model\.fusion\.lf is 3"),
        ({"d_model": 18}, r"model\.fusion\.heads is 4.*18"),
        ({"heads": 3}, r"model\.fusion\.heads is 3.*16"),
    ],
)
def test_wrong_options_name_their_key(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


# --- without a model around it -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["difnet", "sum", "others_only"])
def test_the_network_trains_alone_on_any_loss(name: str) -> None:
    """Without model, objectives and text encoder, on a regression of the fused tokens."""
    network = build(name, gate=False)
    (grid, segmentation), (target, _) = tokens(), tokens(seed=5)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (network(given(grid, segmentation)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
