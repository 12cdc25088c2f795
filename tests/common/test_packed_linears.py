"""Packed linear layers compute what torch's do, whatever happens to the weight."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from lavis_ext.common.errors import UserError
from lavis_ext.common.packed_linears import (
    Int8Linear,
    PackedLinear,
    int8_supported,
    pack_linears,
    quantize_linears,
    unpack_linears,
)
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from tests.tiny import make_answering_model, make_model, make_samples

WIDTH = 512

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False))
    pack_linears(built)
    return built


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


def expected(network: nn.Sequential, x: Tensor) -> Tensor:
    for layer in network:
        assert isinstance(layer, nn.Linear)
        x = nn.functional.linear(x, layer.weight, layer.bias)
    return x


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1,), (3, 7), (0,), (2, 0)])
def test_results_are_those_of_linear(network: nn.Sequential, shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(network(rows(*shape)), expected(network, rows(*shape)))


@torch.no_grad()
def test_the_weight_is_packed_once_and_again_after_a_change(
    network: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Tensor] = []
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def counted(weight: Tensor) -> Tensor:
        packed.append(weight)
        result: Tensor = reorder(weight)
        return result

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counted)
    for _ in range(3):
        network(rows(4))
    assert len(packed) == 2
    network.load_state_dict({name: -each for name, each in network.state_dict().items()})
    torch.testing.assert_close(network(rows(4)), expected(network, rows(4)))
    network[1].weight.mul_(2)
    torch.testing.assert_close(network(rows(4)), expected(network, rows(4)))
    network.to(torch.float64)
    assert network(rows(4).double()).dtype == torch.float64
    assert len(packed) == 5


def test_gradients_are_those_of_linear(network: nn.Sequential) -> None:
    network(rows(4)).sum().backward()
    found = [each.grad for each in network.parameters()]
    network.zero_grad()
    expected(network, rows(4)).sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(found, network.parameters(), strict=True))


@torch.no_grad()
def test_autocast_computes_in_bfloat16(network: nn.Sequential) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = network(rows(4)), expected(network, rows(4))
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain, atol=0.02, rtol=0.02)
    torch.testing.assert_close(network(rows(4)), expected(network, rows(4)))


@torch.no_grad()
def test_a_network_is_copied_and_saved_after_use(network: nn.Sequential) -> None:
    found = network(rows(4))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(rows(4)), found)
    assert list(network.state_dict()) == ["0.weight", "0.bias", "1.weight"]


@torch.no_grad()
def test_unpacked_layers_are_torchs_own_again(network: nn.Sequential) -> None:
    network(rows(4))
    unpack_linears(network)
    assert {type(each) for each in network} == {nn.Linear}
    assert torch.equal(network(rows(4)), expected(network, rows(4)))


def test_only_models_that_answer_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavis_ext.common.packed_linears.SMALLEST", 1)
    kinds = [
        {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
        for model in (make_answering_model(), make_model({"itm": None}))
    ]
    assert PackedLinear in kinds[0]
    assert PackedLinear not in kinds[1]


needs_int8 = pytest.mark.skipif(not int8_supported(), reason="this CPU has no VNNI")


@needs_int8
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1,), (3, 7), (0,), (2, 0)])
def test_int8_results_are_near_those_of_linear(
    network: nn.Sequential, shape: tuple[int, ...]
) -> None:
    quantize_linears(network)
    x = rows(*shape) * torch.logspace(-3, 3, len(rows(*shape)))[(..., *[None] * len(shape))]
    found, wanted = network(x), expected(network, x)
    assert found.shape == wanted.shape
    assert ((found - wanted).norm(dim=-1) < 0.03 * wanted.norm(dim=-1)).all()
    assert not torch.equal(found, wanted) or not found.numel(), "not computed in int8"


@needs_int8
@torch.no_grad()
def test_an_int8_row_depends_on_no_other(network: nn.Sequential) -> None:
    quantize_linears(network)
    x = rows(40)
    x[7] *= 1000
    together = network(x)
    assert torch.equal(together, torch.cat([network(each[None]) for each in x]))
    assert torch.equal(network[0](rows(1) * 0)[0], network[0].get_parameter("bias"))


@needs_int8
def test_int8_layers_have_linears_gradients_and_are_undone(network: nn.Sequential) -> None:
    quantize_linears(network)
    assert {type(each) for each in network} == {Int8Linear}
    assert torch.equal(network(rows(4)), expected(network, rows(4)))
    with torch.no_grad():
        network(rows(4))
        other = copy.deepcopy(network)
        assert torch.equal(other(rows(4)), network(rows(4)))
        with torch.autocast("cpu", torch.bfloat16):
            assert network(rows(4)).dtype == torch.bfloat16
    unpack_linears(network)
    assert {type(each) for each in network} == {nn.Linear}


def test_int8_is_refused_without_a_kernel_for_it(
    network: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(UserError, match="needs a CPU with VNNI"):
        quantize_linears(network)


@needs_int8
def test_int8_layers_stay_int8_in_a_compiled_network(network: nn.Sequential) -> None:
    quantize_linears(network)
    with torch.no_grad():
        wanted = network(rows(4))
        assert torch.equal(torch.compile(network, backend="eager")(rows(4)), wanted)


def test_int8_answers_are_never_silently_of_another_type() -> None:
    model = make_answering_model()
    model.config.quantization = "int8"
    samples = make_samples(1)
    with (
        pytest.raises(UserError, match=r"under bfloat16 autocast, not torch\.float16"),
        torch.autocast("cpu", torch.float16),
    ):
        model.answer(samples)
    with pytest.raises(UserError, match=r"the model's are torch\.float16.*no \.half\(\)"):
        model.half().answer(samples)


def test_training_in_int8_is_refused() -> None:
    config = PnpVqaFusionConfig(objectives={"itm": {}}, quantization="int8")
    with pytest.raises(UserError, match=r"model\.quantization=null here"):
        config.check_training(load_weights=False)


@needs_int8
def test_a_model_answers_in_int8_and_on_a_cpu_alone() -> None:
    model = make_answering_model(quantization="int8")
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear)}
    assert Int8Linear in kinds
    assert not kinds & {nn.Linear, PackedLinear}
    samples = make_samples(2)
    assert len(model.answer(samples).answers) == len(samples["ids"])
    with pytest.raises(UserError, match=r"quantization is int8, .* on meta\. Set run\.device=cpu"):
        model.to("meta").answer(samples)
    with pytest.raises(UserError, match="quantization is int8"):  # alone, as gqa_pointing calls it
        model.locate(samples)
