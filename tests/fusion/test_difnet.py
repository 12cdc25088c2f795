"""Parity of DIFNet's encoder with the authors'."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lavis_ext.common.errors import UserError
from lavis_ext.fusion.difnet import DifnetConfig, DifnetEncoder
from lavis_ext.fusion.difnet_export import authors_state
from lavis_ext.fusion.network import FusionNetwork
from lavis_ext.fusion.stream_adapter import StreamLayout
from tests.parity import normal, reference, set_weights

SMALL = {"lf": 2, "t": 2, "n": 4, "heads": 4, "d_ff": 128}


@pytest.mark.parametrize(
    ("case", "config", "shape"),
    [
        ("paper", DifnetConfig(), (2, 49, 512)),
        ("small", DifnetConfig(**SMALL), (2, 17, 64)),
    ],
)
def test_output_is_the_authors(
    case: str, config: DifnetConfig, shape: tuple[int, int, int]
) -> None:
    encoder = DifnetEncoder(config, shape[-1]).eval()
    set_weights(encoder)
    with torch.no_grad():
        fused = encoder(normal(f"{case}.grid", shape), normal(f"{case}.seg", shape))
    torch.testing.assert_close(fused, reference("difnet", case), atol=1e-5, rtol=0)


def test_the_order_of_the_streams_matters() -> None:
    encoder = DifnetEncoder(DifnetConfig(**SMALL), 64).eval()
    set_weights(encoder)
    grid, segmentation = normal("small.grid", (2, 17, 64)), normal("small.seg", (2, 17, 64))
    with torch.no_grad():
        difference = encoder(grid, segmentation) - encoder(segmentation, grid)
    assert difference.abs().max() > 1e-2


def test_the_streams_share_weights_and_have_their_own_norms() -> None:
    names = set(DifnetEncoder(DifnetConfig(**SMALL), 64).state_dict())
    assert {"layers.1.lnorm.weight", "layers.1.lnorm1.weight"} <= names
    assert {"layers.1.pwff.layer_norm.bias", "layers.1.pwff.layer_norm1.bias"} <= names
    assert "layers.2.lnorm1.weight" not in names  # above Lf there is one stream
    assert sum("fc_q.weight" in name for name in names) == 4


def authors_names(mode: str, layers: int) -> list[str]:
    """Names of the encoder in the authors' files (models/difnet, models/difnet_lrp)."""
    linears = [f"mhatt.attention.fc_{each}" for each in "qkvo"] + ["pwff.fc1", "pwff.fc2"]
    norms = ["mhatt.layer_norm", "lnorm", "lnorm1", "pwff.layer_norm", "pwff.layer_norm1"]
    norms += ["mhatt.layer_norm1"] if mode == "difnet" else []
    return [
        f"encoder.layers.{layer}.{part}.{kind}"
        for layer in range(layers)
        for part in (*linears, *norms)
        for kind in ("weight", "bias")
    ]


def authors_file(path: Path, mode: str) -> str:
    """As their train.py saves it, with the values of the parity rule."""
    encoder = DifnetEncoder(DifnetConfig(**SMALL), 64)
    set_weights(encoder)
    own = encoder.state_dict()
    state = {
        name: own.get(name.removeprefix("encoder."), torch.full((64,), 9.0))
        for name in authors_names(mode, 4)
    }
    state |= {"decoder.fc.weight": torch.ones(5, 64), "decoder.running_seq": torch.zeros(1)}
    state |= {"embed_image.0.weight": torch.ones(64, 2), "embed_pixel.1.bias": torch.ones(64)}
    beside = {
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.RandomState(0).get_state(),
    }
    torch.save({"state_dict": state, "best_cider": np.float64(1.3), **beside}, path)
    return str(path)


def network(**options: object) -> FusionNetwork:
    config = DifnetConfig(**SMALL, d_model=64, **options)  # type: ignore[arg-type]
    layouts = {"grid": StreamLayout(64, (4, 4), 1), "segmentation": StreamLayout(64, (4, 4), 0)}
    return FusionNetwork(config, layouts).eval()


@pytest.mark.parametrize("mode", ["difnet", "difnet_lrp"])
@torch.no_grad()
def test_the_authors_files_of_both_modes_give_the_authors_output(mode: str, tmp_path: Path) -> None:
    loaded = network(weights=authors_file(tmp_path / "DIFNet.pth", mode))
    report = str(loaded.load_report)
    assert f"{len(loaded.encoder.state_dict())} of " in report
    assert "0 missing, 0 unexpected; read by the names of DIFNet's authors" in report
    grid, segmentation = normal("small.grid", (2, 17, 64)), normal("small.seg", (2, 17, 64))
    fused = loaded.encoder(grid, segmentation)
    torch.testing.assert_close(fused, reference("difnet", "small"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["difnet", "difnet_lrp"])
def test_weights_go_back_to_the_authors_names(mode: str, tmp_path: Path) -> None:
    """Every name that their encoder has, so that their strict loading takes it."""
    state = network(weights=authors_file(tmp_path / "DIFNet.pth", mode)).encoder.state_dict()
    back = authors_state(state, mode)
    assert set(back) == set(authors_names(mode, 4))
    assert all(torch.equal(back[f"encoder.{name}"], each) for name, each in state.items())
    assert (back["encoder.layers.3.lnorm1.weight"] == 1).all()  # unread above Lf


def test_a_difnet_of_another_depth_is_rejected(tmp_path: Path) -> None:
    path = authors_file(tmp_path / "DIFNet.pth", "difnet")
    with pytest.raises(UserError, match=r"unexpected: layers\.3\."):
        FusionNetwork(
            DifnetConfig(**{**SMALL, "n": 3}, d_model=64, weights=path),
            {"grid": StreamLayout(64, (4, 4), 1), "segmentation": StreamLayout(64, (4, 4), 0)},
        )


def test_attention_starts_xavier_with_zero_biases() -> None:
    attention = DifnetEncoder(DifnetConfig(), 512).layers[0].mhatt.attention
    bound = (6 / (512 + 512)) ** 0.5
    assert 0.99 * bound < attention.fc_q.weight.abs().max() <= bound
    assert not attention.fc_o.bias.any()


def test_dropout_is_active_only_in_training() -> None:
    encoder = DifnetEncoder(DifnetConfig(**SMALL, dropout=0.5), 64)
    grid, segmentation = normal("small.grid", (2, 17, 64)), normal("small.seg", (2, 17, 64))
    with torch.no_grad():
        assert not torch.equal(encoder(grid, segmentation), encoder(grid, segmentation))
        encoder.eval()
        assert torch.equal(encoder(grid, segmentation), encoder(grid, segmentation))


@pytest.mark.filterwarnings("ignore:.*kernel")  # torch's reasons, beside its error
def test_dropout_leaves_attention_in_the_fused_kernel_unless_it_is_asked_for() -> None:
    streams = normal("small.grid", (2, 17, 64)), normal("small.seg", (2, 17, 64))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # the only one of the CPU that is fused
        DifnetEncoder(DifnetConfig(**SMALL, dropout=0.5), 64)(*streams).sum().backward()
        dropped = DifnetEncoder(DifnetConfig(**SMALL, dropout=0.0, attention_dropout=0.5), 64)
        with pytest.raises(RuntimeError, match="No available kernel"):
            dropped(*streams)
    assert not torch.equal(dropped(*streams), dropped(*streams))
    dropped.eval()
    assert torch.equal(dropped(*streams), dropped(*streams))


def test_lf_must_be_below_n() -> None:
    with pytest.raises(UserError, match=r"model\.fusion\.lf is 3 and model\.fusion\.n is 3"):
        DifnetConfig(lf=3, n=3).check_together("model.fusion")


def test_heads_that_do_not_divide_the_width_are_errors() -> None:
    with pytest.raises(UserError, match=r"model\.fusion\.heads is 8.*width 60"):
        DifnetEncoder(DifnetConfig(), 60)


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        config = DifnetConfig(**SMALL, dropout=0.1, recompute_activations=recompute)
        encoder = DifnetEncoder(config, 64)
        set_weights(encoder)
        encoder.train()
        torch.manual_seed(0)  # the same dropout both times
        encoder(
            normal("small.grid", (2, 17, 64)), normal("small.seg", (2, 17, 64))
        ).sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
