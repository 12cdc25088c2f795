"""Parameter names for the fuzzer: a network's names with wrappers, tables and mistakes.

Each tensor is filled with a distinct number, so that it can be traced.
"""

import io
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lavis_ext.checkpoints.foreign import AVERAGED, ForeignNames, NameTable, translate
from lavis_ext.checkpoints.weights import load_into, read_state_dict

TABLE = NameTable(
    "Somebody",
    (("body.#.attn.*", "layers.#.attention.*"), ("body.#.*", "layers.#.*")),
    unused=("queue", "body_m.*"),
)
POSITIONS = "positions"
NAMES = ForeignNames((TABLE,), {POSITIONS: 1})
PREFIXES = [
    *("module.", "model.", "_orig_mod.", "ema.", "ema_model.", "a.b.", "layers.", "body.", "head."),
    *("student.", ".", "x" * 200 + ".", "\u202e.", "module"),
]
BESIDE = [
    "queue",
    "body_m.0.bias",
    "optimizer.lr",
    "head.bias",
    "",
    ".",
    "a." * 300,
    "layers.9.bias",
]
SHAPES = {"weight": (2, 2), "bias": (2,), POSITIONS: (1, 5, 2)}


class Network(nn.Module):
    """Two layers with the names of ``TABLE``, and positions of a 2x2 grid after one more."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.attention = nn.Linear(2, 2)
            layer.bias = nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(2, 2, bias=False)
        self.positions = nn.Parameter(torch.zeros(SHAPES[POSITIONS]))


def _filled(name: str, number: int, changed_shape: int) -> Tensor:
    shape = SHAPES.get(name.rsplit(".", 1)[-1], (2,))
    if name.endswith(POSITIONS) and changed_shape:
        shape = (1, 1 + changed_shape**2, 2) if changed_shape < 5 else (1, changed_shape, 2)
    elif changed_shape > 6:
        shape = (*shape, 1)
    return torch.full(shape, float(number))


@st.composite
def names(draw: Any) -> tuple[dict[str, bytes], None]:
    """A file of the network's tensors, usually all of them."""
    found = list(Network().state_dict())
    if draw(st.booleans()):
        found = [TABLE.to_theirs(name) for name in found]
    for _ in range(draw(st.integers(0, 2))):
        prefix = draw(st.sampled_from(PREFIXES))
        found = [prefix + name for name in found]
    if draw(st.integers(0, 3)) == 0:
        other = draw(st.sampled_from(PREFIXES))
        found += [other + name for name in found]
    for kind in draw(st.lists(st.sampled_from(["drop", "move", "add", "rename"]), max_size=2)):
        place = draw(st.integers(0, len(found) - 1)) if found else 0
        if kind == "drop" and found:
            del found[place]
        elif kind == "move" and found:
            found[place] = draw(st.sampled_from(PREFIXES)) + found[place]
        elif kind == "add":
            found.append(draw(st.sampled_from(BESIDE) | st.text(max_size=9)))
        elif found:
            found[place] = found[place].replace(".", draw(st.sampled_from(["..", "/", "_", ""])), 1)
    shapes = draw(st.lists(st.integers(0, 8), min_size=0, max_size=3))
    sizes = {draw(st.integers(0, max(len(found) - 1, 0))): shape for shape in shapes}
    state = {
        name: _filled(name, number, sizes.get(number, 0))
        for number, name in enumerate(found, start=1)
    }
    buffer = io.BytesIO()
    torch.save(draw(st.sampled_from([state, {"model": state}, {"ema": state}])), buffer)
    return {"w.pt": buffer.getvalue()}, None


def read_names(folder: Path, how: None) -> None:
    """Load the file; each number must then be in its place, or declared unused."""
    state = read_state_dict(folder / "w.pt")
    network = Network()
    translated, notes = translate(state, network, NAMES, source="the file")
    load_into(network, translated, name="network", notes=notes)
    name_of = {float(tensor.flatten()[0]): name for name, tensor in state.items()}
    read = set()
    for name, tensor in network.state_dict().items():
        (number,) = {float(value) for value in tensor.detach().flatten()}
        read.add(number)
        theirs = name_of[number]
        ending = theirs.rsplit(".", 1)[-1]
        assert ending == name.rsplit(".", 1)[-1], f"{theirs} became {name}"
        digits = [part for part in theirs.split(".") if part in ("0", "1")]
        assert [part for part in name.split(".") if part.isdigit()] == digits[-1:]
    for number, name in name_of.items():
        known = "queue" in name or "body_m." in name or AVERAGED.search(name)
        assert number in read or known, f"{name} was dropped"
