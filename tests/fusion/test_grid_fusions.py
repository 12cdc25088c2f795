"""Fusions that read other streams at their own resolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.encoders.base import Tokens
from lavis_ext.fusion.base import FusionEncoder
from lavis_ext.fusion.expert_attention import rotary_angles, rotated
from lavis_ext.fusion.network import FusionNetwork
from lavis_ext.fusion.stream_adapter import StreamLayout, in_windows, resize_grid, window_of
from lavis_ext.registry import registry

LOCAL = ["local_cross_attention", "spatial_aggregator"]
ZERO_INIT = ["gated_adapter", "expert_attention"]
FUSIONS = ["channel_concat", *LOCAL, *ZERO_INIT]
HEADS = {"spatial_aggregator": 4, "expert_attention": 2}
SHALLOW = {"spatial_aggregator": {"depth": 1}, "expert_attention": {"depth": 1}}
WIDTH, OTHER = 16, 12
GRID = (4, 4)


def layouts(
    *others: tuple[int, int], grid: tuple[int, int] = GRID, prefix: int = 1
) -> dict[str, StreamLayout]:
    """The first stream, and others of the given grids, each with one prefix token more."""
    found = {"grid": StreamLayout(WIDTH, grid, prefix)}
    for place, other in enumerate(others):
        found[f"other{place}"] = StreamLayout(OTHER + 2 * place, other, place)
    return found


def build(
    name: str, sizes: dict[str, StreamLayout], *, untrained: bool = False, **options: object
) -> FusionNetwork:
    """A network in evaluation mode; its zero weights are random unless it's ``untrained``."""
    torch.manual_seed(0)
    section = {"name": name, **options}
    if name in HEADS:
        section.setdefault("heads", HEADS[name])
    network = FusionNetwork(
        typed(registry.get_fusion_class(name).Config, section, "model.fusion"), sizes
    ).eval()
    if not untrained:
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.2)
    return network


def given(sizes: dict[str, StreamLayout], images: int = 2, seed: int = 1) -> dict[str, Tokens]:
    """Random tokens of these layouts."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Tokens(
            torch.randn(
                images, size.prefix + math.prod(size.grid), size.width, generator=generator
            ),
            size.grid,
            size.prefix,
        )
        for name, size in sizes.items()
    }


# --- what all have in common ---------------------------------------------------------------------


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        layouts((8, 8)),
        layouts((4, 4)),
        layouts((10, 6)),  # no multiple of the first's
        layouts((2, 3)),  # coarser
        layouts((9, 9), grid=(3, 5), prefix=0),  # no class token
        layouts((8, 8), prefix=2),
        layouts((8, 8), (5, 7), (1, 1)),  # several, with prefix tokens of their own
    ],
    ids=str,
)
def test_streams_of_any_size_become_tokens_like_the_firsts(
    name: str, images: int, sizes: dict[str, StreamLayout]
) -> None:
    streams = given(sizes, images)
    fused = build(name, sizes)(streams)
    assert fused.shape == streams["grid"].values.shape
    assert fused.isfinite().all()


@pytest.mark.parametrize("name", FUSIONS)
def test_each_stream_and_all_of_its_patches_are_read(name: str) -> None:
    sizes = layouts((8, 8), (5, 7))
    network, streams = build(name, sizes, gate=False), given(sizes)
    values = {key: tokens.values.requires_grad_() for key, tokens in streams.items()}
    network(streams).square().sum().backward()
    for key, value in values.items():
        patches = value.grad[:, sizes[key].prefix :] if key != "grid" else value.grad
        assert patches.abs().amax(dim=-1).min() > 0, key


@pytest.mark.parametrize("name", FUSIONS)
def test_with_the_gate_step_0_is_the_first_stream(name: str) -> None:
    sizes = layouts((8, 8), (5, 7))
    streams = given(sizes)
    for d_model in (None, 32):
        network = build(name, sizes, untrained=True, gate=True, d_model=d_model)
        assert torch.equal(network(streams), streams["grid"].values)


@pytest.mark.parametrize("name", ZERO_INIT)
def test_with_projections_from_zero_step_0_is_the_first_stream(name: str) -> None:
    sizes = layouts((8, 8), (5, 7))
    streams = given(sizes)
    assert torch.equal(build(name, sizes, untrained=True)(streams), streams["grid"].values)
    started = build(name, sizes, untrained=True, zero_init=False)(streams)
    assert not torch.allclose(started, streams["grid"].values, atol=0.1)


@pytest.mark.parametrize("name", [*LOCAL, "channel_concat"])
def test_without_a_gate_other_fusions_dont_start_from_the_first_stream(name: str) -> None:
    sizes = layouts((8, 8))
    streams = given(sizes)
    fused = build(name, sizes, untrained=True, gate=False)(streams)
    assert not torch.allclose(fused, streams["grid"].values, atol=0.01)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("d_model", [None, 32])
def test_a_few_steps_train_every_parameter(name: str, gate: bool, d_model: int | None) -> None:
    sizes = layouts((8, 8), (5, 7))
    options = {"gate": gate, "d_model": d_model, **SHALLOW.get(name, {})}
    network = build(name, sizes, untrained=True, **options)
    streams, target = given(sizes), given(sizes, seed=2)["grid"].values
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (network(streams) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert [key for key, p in network.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    same = [key for key, value in network.state_dict().items() if torch.equal(value, before[key])]
    assert same == []
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", FUSIONS)
def test_images_of_a_batch_dont_mix(name: str) -> None:
    sizes = layouts((8, 8))
    network, streams = build(name, sizes), given(sizes, 3)
    alone = network({key: each._replace(values=each.values[1:2]) for key, each in streams.items()})
    torch.testing.assert_close(network(streams)[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FUSIONS)
def test_bfloat16_and_compile_change_little(name: str) -> None:
    sizes = layouts((8, 8), (5, 7))
    network, streams = build(name, sizes, **SHALLOW.get(name, {})), given(sizes)
    expected = network(streams)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(streams)
    assert (found.float() - expected).abs().mean() < 0.02 * expected.abs().mean()
    # Stored features are half as wide.
    half = {key: each._replace(values=each.values.bfloat16()) for key, each in streams.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = network(half)
    assert (found.float() - expected).abs().mean() < 0.03 * expected.abs().mean()
    network.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(network(streams), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FUSIONS)
def test_pooled_features_fit_the_same_network(name: str) -> None:
    """``run.features.pooling`` halves all grids, which the network was not built for."""
    network = build(name, layouts((8, 8)))
    streams = given(layouts((4, 4), grid=(2, 2)))
    assert network(streams).shape == (2, 5, WIDTH)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_missing_stream_and_one_of_another_size_are_errors(name: str) -> None:
    sizes = layouts((8, 8))
    network, streams = build(name, sizes), given(sizes)
    with pytest.raises(UserError, match="reads the stream 'other0'"):
        network({"grid": streams["grid"]})
    wrong = streams["other0"]._replace(grid=(8, 7))
    with pytest.raises(UserError, match=r"'other0' has 64 tokens.*8x7 make 56"):
        network({**streams, "other0": wrong})
    with pytest.raises(UserError, match=f"'{name}' fuses several streams"):
        build(name, layouts())


@pytest.mark.parametrize("name", [*LOCAL, "expert_attention"])
@pytest.mark.parametrize("d_model", [None, 16])
def test_heads_that_dont_divide_the_width_are_an_error(name: str, d_model: int | None) -> None:
    with pytest.raises(UserError, match=r"model\.fusion\.heads is 3.*width 16"):
        build(name, layouts((8, 8)), heads=3, d_model=d_model)


def test_rotary_positions_need_heads_of_four_channels() -> None:
    with pytest.raises(UserError, match=r"heads is 8.*width 16.*multiples of 4 channels"):
        build("expert_attention", layouts((8, 8)), heads=8)


# --- places --------------------------------------------------------------------------------------


def changed_by(network: FusionNetwork, sizes: dict[str, StreamLayout], cell: int) -> Tensor:
    """bool [P+N]: fused tokens of one image that a cell of the stream ``other0`` changes."""
    streams = given(sizes, images=1)
    other = streams["other0"].values.clone()
    other[:, cell] += torch.randn(OTHER, generator=torch.Generator().manual_seed(5))
    moved = {**streams, "other0": streams["other0"]._replace(values=other)}
    return (network(streams) - network(moved))[0].abs().amax(dim=-1) > 1e-6


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 6), (7, 7), (4, 1)])
def test_a_fine_cell_changes_only_the_token_whose_window_it_is_in(
    name: str, row: int, column: int
) -> None:
    sizes = layouts((8, 8))
    changed = changed_by(build(name, sizes, gate=False), sizes, 8 * row + column)
    assert changed[0]  # the class token sees the whole picture
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[row // 2, column // 2] = True
    assert torch.equal(changed[1:].view(GRID), expected)


def test_expert_attention_reaches_every_token() -> None:
    sizes = layouts((8, 8))
    assert changed_by(build("expert_attention", sizes), sizes, 9).all()


@pytest.mark.parametrize("name", LOCAL)
def test_only_a_reader_of_fine_patches_sees_their_order_in_a_window(name: str) -> None:
    """A stripe of two cells against its mirror image: their mean, and so ``sum``, is the same."""
    sizes = layouts((8, 8))
    streams = given(sizes, images=1)
    values = streams["other0"].values
    mirrored = values.unflatten(1, (8, 4, 2)).flip(3).flatten(1, 3)
    swapped = {**streams, "other0": streams["other0"]._replace(values=mirrored)}
    network = build(name, sizes, gate=False)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "positions" in key:
                nn.init.normal_(parameter)
    same = torch.allclose(network(streams), network(swapped), atol=1e-5)
    # Without positions in the window, attention is a set of its patches.
    assert same == (name == "local_cross_attention")


def test_windows_hold_the_patches_of_their_place() -> None:
    numbered = torch.arange(4 * 6.0).view(1, 24, 1)
    windows = in_windows(numbered, (4, 6), (2, 3), (2, 2))
    assert windows[0, :, :, 0].tolist() == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        [12, 13, 18, 19],
        [14, 15, 20, 21],
        [16, 17, 22, 23],
    ]


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [((24, 24), (64, 64), (3, 3)), ((8, 8), (16, 24), (2, 3)), ((24, 24), (7, 24), (1, 1))],
)
def test_windows_are_rounded_up(first: tuple, other: tuple, expected: tuple) -> None:
    assert window_of(first, other) == expected


def test_rotary_angles_agree_where_two_grids_meet() -> None:
    """Attention of rotated tokens depends on distance in the picture, whatever the grid."""
    fine = rotary_angles((6, 6), (2, 2), 8, torch.device("cpu")).view(6, 6, 4)
    own = rotary_angles((2, 2), (2, 2), 8, torch.device("cpu")).view(2, 2, 4)
    torch.testing.assert_close(fine[1::3, 1::3], own)  # middles of the windows of 3 x 3
    query, key = torch.randn(2, 1, 1, 1, 8).unbind()

    def score(here: tuple[int, int], there: tuple[int, int]) -> Tensor:
        turned = [
            rotated(each, fine[place].view(1, 4)) for each, place in ((query, here), (key, there))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score((0, 1), (2, 2)), score((3, 4), (5, 5)))
    assert abs(score((0, 1), (2, 2)) - score((0, 1), (2, 3))) > 1e-3


# --- formulas, one token after the other ---------------------------------------------------------


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def normed(layer: nn.Module, x: Tensor) -> Tensor:
    return norm(x) * layer.weight + layer.bias


def lin(layer: nn.Module, x: Tensor) -> Tensor:
    product = x @ layer.weight.T
    return product if layer.bias is None else product + layer.bias


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One query [D] on keys [K, D], head by head."""
    out = []
    for q, k, v in zip(
        query.chunk(heads), keys.chunk(heads, dim=-1), values.chunk(heads, dim=-1), strict=True
    ):
        scores = (k @ q / math.sqrt(len(q))).exp()
        out.append((scores[:, None] * v).sum(0) / scores.sum())
    return torch.cat(out)


def window_rows(values: Tensor, row: int, column: int) -> Tensor:
    """The four cells of an 8 x 8 grid in a place of the 4 x 4 grid."""
    return torch.stack(
        [values[8 * (2 * row + i) + 2 * column + j] for i in range(2) for j in range(2)]
    )


@pytest.fixture
def two() -> tuple[dict[str, StreamLayout], dict[str, Tokens]]:
    sizes = layouts((8, 8))
    return sizes, given(sizes, images=1)


def test_the_formula_of_channel_concat(two: tuple) -> None:
    sizes, streams = two
    network = build("channel_concat", sizes, gate=False, hidden=20)
    first, other = streams["grid"].values[0], streams["other0"].values[0]
    middle = resize_grid(other[None], (8, 8), GRID)[0]
    both = torch.cat((first, torch.cat((other.mean(0, keepdim=True), middle))), dim=-1)
    norms, one, _, last = network.encoder.mlp
    expected = lin(last, F.gelu(lin(one, normed(norms, both))))
    torch.testing.assert_close(network(streams)[0], expected, atol=1e-5, rtol=1e-5)


def test_channels_of_windows_keep_every_finer_patch() -> None:
    sizes = layouts((8, 8))
    network = build("channel_concat", sizes, gate=False, finer="windows", first=False)
    streams = given(sizes)
    windows = in_windows(streams["other0"].values, (8, 8), GRID, (2, 2)).flatten(2)
    whole = torch.cat((windows.mean(dim=1, keepdim=True), windows), dim=1)
    torch.testing.assert_close(network(streams), network.encoder.mlp(whole))
    other_first = streams | {"grid": streams["grid"]._replace(values=streams["grid"].values + 1)}
    assert torch.equal(network(other_first), network(streams)), "the first stream was read"


@pytest.mark.parametrize(("other", "strides"), [((8, 8), [2]), ((4, 4), [1]), ((9, 12), [2, 2])])
def test_convolutions_bring_a_finer_grid_to_the_first(other: tuple, strides: list[int]) -> None:
    sizes = layouts(other)
    network = build("channel_concat", sizes, gate=False, finer="convolutions", first=False)
    (convolutions,) = network.encoder.convolutions
    found = [each for each in convolutions.layers if isinstance(each, torch.nn.Conv2d)]
    assert [each.stride[0] for each in found] == strides
    streams = given(sizes)
    tokens = streams["other0"]
    states = resize_grid(convolutions.norm(tokens.values), other, convolutions.target)
    states = states.transpose(1, 2).unflatten(2, convolutions.target)
    for each in found:
        states = F.gelu(F.conv2d(states, each.weight, each.bias, each.stride, padding=1))
    patches = states.flatten(2).transpose(1, 2)
    assert patches.shape[1] == GRID[0] * GRID[1]
    whole = torch.cat((patches.mean(dim=1, keepdim=True), patches), dim=1)
    torch.testing.assert_close(network(streams), network.encoder.mlp(whole))


def test_leaving_the_first_stream_out_is_refused_with_a_gate() -> None:
    with pytest.raises(UserError, match=r"set model\.fusion\.gate=false"):
        build("channel_concat", layouts((8, 8)), first=False)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_formula_of_local_cross_attention(two: tuple, heads: int) -> None:
    sizes, streams = two
    network = build("local_cross_attention", sizes, gate=False, heads=heads)
    first, other = streams["grid"].values[0], streams["other0"].values[0]
    attention = network.encoder.attention
    stream = attention.streams[0]
    expected = []
    for place, token in enumerate(first):
        seen = other if place == 0 else window_rows(other, *divmod(place - 1, 4))
        query, key, value = (
            lin(layer[1], normed(layer[0], x))
            for layer, x in ((attention.query, token), (stream.key, seen), (stream.value, seen))
        )
        expected.append(token + attend(query, key, value, heads))
    torch.testing.assert_close(network(streams)[0], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_formula_of_spatial_aggregator(two: tuple) -> None:
    sizes, streams = two
    network = build("spatial_aggregator", sizes, gate=False, depth=2)
    first, other = streams["grid"].values[0], streams["other0"].values[0]
    patches = first[1:]
    x = first
    for layer in network.encoder.layers:
        attention, updated = layer.attention, []
        own, fine = attention.streams
        for place, token in enumerate(x):
            query = lin(layer.inner, torch.cat((token, lin(layer.context, patches.mean(0)))))
            if place == 0:
                mine = patches
                windows = [window_rows(other, *divmod(n, 4)) + fine.positions for n in range(16)]
                seen = torch.cat(windows)
            else:
                mine = patches[place - 1][None]
                seen = window_rows(other, *divmod(place - 1, 4)) + fine.positions
            keys, values = (
                torch.cat(
                    [
                        lin(getattr(stream, part)[1], normed(getattr(stream, part)[0], rows))
                        for stream, rows in ((own, mine), (fine, seen))
                    ]
                )
                for part in ("key", "value")
            )
            asked = lin(attention.query[1], normed(attention.query[0], query))
            attended = lin(layer.output, attend(asked, keys, values, 4))
            hidden = normed(layer.norm, query + attended)
            updated.append(token + lin(layer.mlp[2], F.gelu(lin(layer.mlp[0], hidden))))
        x = torch.stack(updated)
    torch.testing.assert_close(network(streams)[0], x, atol=1e-5, rtol=1e-5)


def test_the_formula_of_gated_adapter(two: tuple) -> None:
    sizes, streams = two
    network = build("gated_adapter", sizes).double()
    first, other = (streams[name].values[0].double() for name in ("grid", "other0"))
    encoder, branch = network.encoder, network.encoder.slow[0]
    cls, patches = first[:1], first[1:].view(4, 4, WIDTH)
    kernel, bias = encoder.fast_conv.weight[:, 0], encoder.fast_conv.bias
    convolved = torch.zeros_like(patches)
    for row in range(4):
        for column in range(4):
            total = bias.clone()
            for i in range(4):
                for j in range(4):  # the kernel of 7 reaches over the whole grid of 4
                    total = total + kernel[:, 3 + i - row, 3 + j - column] * patches[i, j]
            convolved[row, column] = total
    fast = patches + lin(encoder.fast_proj, F.gelu(convolved))
    fast = torch.cat((cls, fast.view(16, WIDTH)))
    projected = lin(branch.proj, F.gelu(lin(branch.conv, other)))
    slow = resize_grid(projected[None], (8, 8), GRID)[0]
    mean = torch.cat((fast[1:], slow), dim=-1).mean(0)
    gate = torch.tanh(lin(branch.gate[2], F.gelu(lin(branch.gate[0], mean))))
    expected = fast + gate * torch.cat((projected.mean(0, keepdim=True), slow))
    found = network(
        {key: each._replace(values=each.values.double()) for key, each in streams.items()}
    )
    torch.testing.assert_close(found[0], expected)


def test_the_formula_of_expert_attention() -> None:
    sizes = layouts((8, 8), (3, 3))
    streams = given(sizes, images=1)
    network = build("expert_attention", sizes, depth=2)

    def place(grid: tuple[int, int], index: int) -> list[float]:
        row, column = divmod(index, grid[1])
        return [(row + 0.5) * 4 / grid[0], (column + 0.5) * 4 / grid[1]]

    def turn(token: Tensor, where: list[float] | None) -> Tensor:
        """Each head's eight channels as four complex numbers, turned."""
        if where is None:
            return token
        heads = []
        for head in token.chunk(2):
            frequencies = [1.0, 10000 ** -(4 / 8)]
            angles = torch.tensor([p * f for p in where for f in frequencies])
            turned = torch.complex(head[:4], head[4:]) * torch.polar(torch.ones(4), angles)
            heads.append(torch.cat((turned.real, turned.imag)))
        return torch.cat(heads)

    def cross(layer: nn.Module, x: Tensor, context: Tensor, grid: tuple[int, int], prefix: int):
        where = [None] * prefix + [place(grid, n) for n in range(len(context) - prefix)]
        keys = torch.stack(
            [turn(k, p) for k, p in zip(lin(layer.key, context), where, strict=True)]
        )
        own = [None] + [place(GRID, n) for n in range(16)]
        rows = [
            attend(turn(q, p), keys, lin(layer.value, context), 2)
            for q, p in zip(lin(layer.query, x), own, strict=True)
        ]
        return lin(layer.output, torch.stack(rows))

    x = streams["grid"].values[0]
    others = [streams["other0"].values[0], streams["other1"].values[0, 1:]]
    for block in network.encoder.blocks:
        gates = torch.sigmoid(lin(block.gate[2], F.gelu(lin(block.gate[0], x.mean(0)))))
        update = sum(
            gates[n]
            * cross(
                block.cross_attention[n],
                normed(block.norms[n], x),
                normed(block.expert_norms[n], other),
                grid,
                0,
            )
            for n, (other, grid) in enumerate(zip(others, ((8, 8), (3, 3)), strict=True))
        )
        x = x + update
        own = normed(block.attention_norm, x)
        x = x + cross(block.attention, own, own, GRID, 1)
        y = normed(block.mlp_norm, x)
        x = x + lin(block.mlp.output, F.silu(lin(block.mlp.gate, y)) * lin(block.mlp.up, y))
    torch.testing.assert_close(network(streams)[0], x, atol=1e-5, rtol=1e-4)


# --- the other kind of fusion --------------------------------------------------------------------


def test_fusions_at_the_firsts_places_are_as_before() -> None:
    """Names of parameters, which files of trained weights have."""
    for name in ("difnet", "sum", "others_only"):
        assert issubclass(registry.get_fusion_class(name), FusionEncoder)
    network = build("sum", layouts((8, 8)), gate=True)
    assert set(network.state_dict()) == {
        "gate",
        "adapter.partners.other0",
        "adapter.projections.other0.weight",
        "adapter.projections.other0.bias",
        "adapter.norms.other0.weight",
        "adapter.norms.other0.bias",
    }
