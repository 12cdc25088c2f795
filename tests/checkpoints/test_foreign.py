"""Other programs' names are detected and translated, and no used entry is dropped."""

import argparse
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lavis_ext.checkpoints.foreign import ForeignNames, NameTable, resize_positions, translate
from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.weights import load_into, read_state_dict
from lavis_ext.common.errors import UserError
from lavis_ext.encoders.blip.names import MATCHING, MATCHING_NAMES

TABLE = NameTable(
    "Somebody",
    (("body.#.attn.*", "layers.#.attention.*"), ("body.#.*", "layers.#.*")),
    unused=("queue", "body_m.*"),
)
NAMES = ForeignNames((TABLE,))


class Network(nn.Module):
    """Parameters ``layers.N.attention.weight``, ``layers.N.bias`` and ``head.weight``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.attention = nn.Linear(3, 3, bias=False)
            layer.bias = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(3, 2, bias=False)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def state(network: Network) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in network.state_dict().items()}


def read(state: dict[str, Tensor], network: nn.Module, names: ForeignNames = NAMES) -> str:
    """Load ``state`` and return the report."""
    translated, notes = translate(state, network, names, source="w.pth")
    return str(load_into(network, translated, name="network", notes=notes))


def assert_loaded(network: nn.Module, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(each, state[name]) for name, each in network.state_dict().items())


# --- tables --------------------------------------------------------------------------------------


def test_rules_translate_in_both_directions(state: dict[str, Tensor]) -> None:
    theirs = {TABLE.to_theirs(name): name for name in state}
    assert theirs["body.1.attn.weight"] == "layers.1.attention.weight"
    assert theirs["body.0.bias"] == "layers.0.bias"
    assert theirs["head.weight"] == "head.weight"
    assert {TABLE.to_ours(name): name for name in theirs}.keys() == state.keys()


def test_a_table_is_applied_and_its_unused_entries_left_out(
    network: Network, state: dict[str, Tensor]
) -> None:
    theirs = {TABLE.to_theirs(name): each for name, each in state.items()}
    report = read({**theirs, "queue": torch.ones(1), "body_m.0.bias": torch.ones(3)}, network)
    assert report == (
        "network: 5 of 5 parameters found, 0 missing, 0 unexpected; read by the names of Somebody; "
        "left out 2 entries that aren't used here (queue, body_m.*)"
    )
    assert_loaded(network, state)


def test_entries_unknown_to_tables_are_not_dropped(
    network: Network, state: dict[str, Tensor]
) -> None:
    theirs = {TABLE.to_theirs(name): each for name, each in state.items()}
    with pytest.raises(UserError, match=r"1 unexpected: adapter\.weight .*names of Somebody"):
        read({**theirs, "adapter.weight": torch.ones(1)}, network)


def test_own_names_are_not_translated(network: Network, state: dict[str, Tensor]) -> None:
    assert read(state, network) == "network: 5 of 5 parameters found, 0 missing, 0 unexpected"
    assert_loaded(network, state)


def test_a_table_is_skipped_without_the_names_it_needs(
    network: Network, state: dict[str, Tensor]
) -> None:
    table = NameTable("Somebody", TABLE.rules, unused=("queue",), needs=("*mark",))
    names = ForeignNames((table,))
    theirs = {TABLE.to_theirs(name): each for name, each in state.items()} | {
        "queue": torch.ones(1)
    }
    with pytest.raises(UserError, match="don't match"):
        read(theirs, network, names)
    with pytest.raises(UserError, match="1 unexpected: mark"):
        read({**theirs, "mark": torch.ones(1)}, network, names)


# --- prefixes and wrappers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "quoted"),
    [
        ("module.", "'module.'"),
        ("_orig_mod.", "'_orig_mod.'"),
        ("module._orig_mod.", "'_orig_mod.', 'module.'"),
        ("model.", "'model.'"),
        ("model.visual.", "'model.visual.'"),
        ("_forward_module.model.", "'_forward_module.', 'model.'"),
        ("ema.", "'ema.'"),
    ],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_prefixes_of_programs_are_found(
    prefix: str, quoted: str, foreign: bool, network: Network, state: dict[str, Tensor]
) -> None:
    named = {TABLE.to_theirs(name) if foreign else name: each for name, each in state.items()}
    report = read({prefix + name: each for name, each in named.items()}, network)
    assert f"without {quoted} in its names" in report
    assert ("names of Somebody" in report) == foreign
    assert_loaded(network, state)


def test_wrappers_in_the_middle_of_names_are_left_out(
    network: Network, state: dict[str, Tensor]
) -> None:
    wrapped = {
        name.replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."): each
        for name, each in state.items()
    }
    assert "'_checkpoint_wrapped_module.', '_fsdp_wrapped_module.'" in read(wrapped, network)
    assert_loaded(network, state)


def test_entries_of_a_moving_average_are_ignored(
    network: Network, state: dict[str, Tensor]
) -> None:
    both = {f"ema_model.{name}": each + 1 for name, each in state.items()}
    both |= {f"online_model.{name}": each for name, each in state.items()}
    assert "left out 5 entries of a moving average" in read(both, network)
    assert_loaded(network, state)


def test_two_copies_without_an_average_are_rejected(
    network: Network, state: dict[str, Tensor]
) -> None:
    both = {f"{who}.{name}": each for who in ("student", "teacher") for name, each in state.items()}
    with pytest.raises(UserError, match="5 unexpected: "):
        read(both, network)


def test_equal_duplicates_are_merged_and_different_ones_rejected(
    network: Network, state: dict[str, Tensor]
) -> None:
    twice = {**state, "module.head.weight": state["head.weight"].clone()}
    del twice["layers.0.bias"]
    twice["module.layers.0.bias"] = state["layers.0.bias"]
    read(twice, network)
    assert_loaded(network, state)
    twice["module.head.weight"] = state["head.weight"] + 1
    with pytest.raises(UserError, match=r"w\.pth: .*two different tensors .* head\.weight"):
        read(twice, network)


def test_shapes_decide_between_readings(network: Network, state: dict[str, Tensor]) -> None:
    """The first prefix has another network with the same names."""
    wide = {f"wide.{name}": torch.ones(7, 7) for name in state}
    translated, notes = translate(
        {**wide, **{f"narrow.{name}": each for name, each in state.items()}},
        network,
        NAMES,
        source="w.pth",
    )
    assert "without 'narrow.' in its names" in notes
    assert all(torch.equal(translated[name], each) for name, each in state.items())


def test_names_of_any_depth_are_read_in_time(network: Network) -> None:
    deep = {"a." * 50_000 + "bias": torch.ones(1), ".": torch.ones(1), "": torch.ones(1)}
    translated, _ = translate(deep, network, NAMES, source="w.pth")
    assert len(translated) == 3


# --- positions -----------------------------------------------------------------------------------


def test_positions_keep_their_prefix_and_a_constant_stays_constant() -> None:
    positions = torch.cat((torch.full((1, 2, 3), 7.0), torch.full((1, 9, 3), 0.25)), dim=1)
    resized = resize_positions(positions.half(), (1, 2 + 25, 3), prefix=2)
    assert resized is not None
    assert (resized.dtype, resized.shape) == (torch.float16, (1, 27, 3))
    assert (resized[:, :2] == 7).all()
    assert (resized[:, 2:] == 0.25).all()


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((1, 11, 3), (1, 17, 3)),  # 10 patches are no square
        ((1, 10, 3), (1, 18, 3)),
        ((1, 10, 4), (1, 17, 3)),
        ((1, 1, 3), (1, 17, 3)),
        ((1, 0, 3), (1, 17, 3)),
        ((10, 3), (1, 17, 3)),
        ((1, 10, 3), (17, 3)),
    ],
)
def test_positions_of_other_grids_are_rejected(
    stored: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert resize_positions(torch.ones(stored), wanted, prefix=1) is None


# --- files ---------------------------------------------------------------------------------------


def miniature() -> dict[str, Tensor]:
    path = resolve("packaged:miniature/blip_question_matching.safetensors", key="weights")
    return load_file(path)


class _Holder(nn.Module):
    """A module with a state dict's parameters and names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = state

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:  # type: ignore[override]
        return self.held


@pytest.mark.parametrize("wrapping", ["lavis", "module"])
def test_the_miniature_under_other_names_fits_whole(wrapping: str, tmp_path: Path) -> None:
    own = miniature()
    if wrapping == "lavis":
        named = {MATCHING.to_theirs(name): each for name, each in own.items()}
        assert sum(name in named for name in own) == 62  # what fitted without a translation
        content = {"model": {**named, "temp": torch.tensor(0.07)}, "scaler": None, "epoch": 5}
    else:
        content = {"model": {f"module.{name}": each for name, each in own.items()}}
    torch.save(content, tmp_path / "w.pth")
    translated, notes = translate(
        read_state_dict(tmp_path / "w.pth"), _Holder(own), MATCHING_NAMES, source="w.pth"
    )
    assert translated.keys() == own.keys()
    assert all(torch.equal(translated[name], each) for name, each in own.items())
    assert notes


@pytest.mark.parametrize(
    "wrapper", ["model", "state_dict", "model_state_dict", "module", "net", "ema", "params_ema"]
)
def test_wrappers_of_training_programs_are_opened(
    wrapper: str, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    """The files also have other objects of DIFNet's and other programs, such as arguments."""
    beside = {
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.RandomState(0).get_state(),
        "random_rng_state": random.getstate(),
        "val_cider": np.float64(1.36),
        "args": argparse.Namespace(lr=0.1, out=Path("out"), names=["a"]),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    }
    torch.save({**beside, wrapper: state}, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth").keys() == state.keys()


def test_a_moving_average_in_the_same_file_is_ignored(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    ema = {name: each + 1 for name, each in state.items()}
    torch.save({"model_ema": ema, "model": {"state_dict": state}}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        read = read_state_dict(tmp_path / "w.pth")
    assert all(torch.equal(read[name], each) for name, each in state.items())
    assert "reading 'model' and ignoring model_ema beside it" in caplog.text


def test_pickled_arguments_are_not_executed(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.system, ("exit 1",)

    for beside in (Code(), argparse.Namespace(inner=Code())):
        torch.save({"model": {"a": torch.ones(1)}, "args": beside}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="would run code"):
            read_state_dict(tmp_path / "w.pth")
    torch.save({"model": {"a": argparse.Namespace()}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no plain tensor under 'a'"):
        read_state_dict(tmp_path / "w.pth")
    torch.save({"model": {"a": np.ones(3)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no plain tensor under 'a'"):
        read_state_dict(tmp_path / "w.pth")
