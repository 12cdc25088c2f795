"""DIFNet's encoder gives the authors' numbers."""

import pytest
import torch

from lavis_ext.checkpoints.weights import load_into
from lavis_ext.common.errors import UserError
from lavis_ext.fusion.difnet import DifnetConfig, DifnetEncoder
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


def test_an_authors_checkpoint_loads_with_one_pattern_allowed() -> None:
    encoder = DifnetEncoder(DifnetConfig(**SMALL), 64)
    state = encoder.state_dict()
    for layer in range(4):
        for block in ("mhatt.layer_norm1", "lnorm1", "pwff.layer_norm1"):
            for kind in ("weight", "bias"):
                state.setdefault(f"layers.{layer}.{block}.{kind}", torch.zeros(64))
    report = load_into(encoder, state, name="DIFNet", allow_unexpected=["layers.*norm1.*"])
    assert (report.missing, len(report.unexpected)) == ((), 16)


def test_attention_starts_xavier_with_zero_biases() -> None:
    attention = DifnetEncoder(DifnetConfig(), 512).layers[0].mhatt.attention
    bound = (6 / (512 + 512)) ** 0.5
    assert 0.99 * bound < attention.fc_q.weight.abs().max() <= bound
    assert not attention.fc_o.bias.any()


def test_dropout_acts_in_training_only() -> None:
    encoder = DifnetEncoder(DifnetConfig(**SMALL, dropout=0.5), 64)
    grid, segmentation = normal("small.grid", (2, 17, 64)), normal("small.seg", (2, 17, 64))
    with torch.no_grad():
        assert not torch.equal(encoder(grid, segmentation), encoder(grid, segmentation))
        encoder.eval()
        assert torch.equal(encoder(grid, segmentation), encoder(grid, segmentation))


def test_no_layer_left_for_the_sum_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.fusion\.lf is 3 and model\.fusion\.n is 3"):
        DifnetConfig(lf=3, n=3).check_together("model.fusion")


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
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
