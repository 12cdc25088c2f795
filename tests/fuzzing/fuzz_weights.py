"""Weights and states for the fuzzer: all supported formats, valid or mutated."""

import io
import json
import pickle
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from lavis_ext.ask.pipeline import model_section
from lavis_ext.checkpoints import trained_weights as fusion_weights
from lavis_ext.checkpoints.sources import resolve
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.checkpoints.weights import load_into, read_state_dict
from lavis_ext.common import files
from lavis_ext.config.loader import Config
from lavis_ext.models.pnp_vqa.model import _vocabulary_of
from lavis_ext.runners import state as run_state
from lavis_ext.runners.resuming import check_fits
from lavis_ext.runners.state import RankState, RunState
from tests.fuzzing.mutations import changed, changes, damaged, deeds, written

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}
WORDS = [
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x80\x02", b"}q\x00", b"cos\nsystem\n", b"R."),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"Q.", b"."),
    *(b"X\xff\xff\xff\x7f", b"\x8a\xff", b"T\xff\xff\xff\x7f", b"data.pkl", b"F32", b"F8_E4M3"),
    *(
        b"I64",
        b"BOOL",
        b"C64",
        b'"shape":[1,-1]',
        b'"data_offsets":[0,0]',
        b"__metadata__",
        b"\x00",
    ),
    *(b"\xff" * 8, b"\x00" * 8, b"{", b"}", b"[", b"]", b'"', b"null", b"1e999", b"9" * 30),
]


class Code:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1/0",)


@cache
def _torch_contents() -> list[Any]:
    return [
        TENSORS,
        {"model": TENSORS, "epoch": 3},
        {"state_dict": TENSORS, "model": {"x": [1]}},
        {"model": Code()},
        {**TENSORS, "other": nn.Parameter(torch.ones(2))},
        {"weight": torch.ones(2, 3).to_sparse(), "bias": torch.ones(2)},
        {"weight": torch.empty(2, 3, device="meta"), "bias": torch.ones(2)},
        {"weight": torch.ones(1).expand(2, 3), "bias": torch.ones(2, dtype=torch.complex64)},
        {"weight": torch.ones(2, 3, dtype=torch.bool), 3: torch.ones(1)},
        [1, 2],
        {},
    ]


def _saved(content: Any, how: str) -> bytes:
    buffer = io.BytesIO()
    if how == "pickle":
        pickle.dump(content, buffer, protocol=2)
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=how == "zip")
    return buffer.getvalue()


def _with_members(content: bytes, change: Callable[[str, bytes], bytes], packed: int) -> bytes:
    """A zip with changed members and matching checksums."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as before,
        zipfile.ZipFile(buffer, "w", packed) as after,
    ):
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return buffer.getvalue()


@st.composite
def _torch_files(draw: Any) -> tuple[str, bytes]:
    content = draw(st.sampled_from(_torch_contents()))
    how = draw(st.sampled_from(["zip", "zip", "zip", "tar", "pickle"]))
    found = _saved(content, how)
    packed = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    if how == "zip" and draw(st.booleans()):
        todo, wanted = (
            draw(deeds(WORDS)),
            draw(st.sampled_from(["pkl", "data/0", "order", "version"])),
        )
        found = _with_members(
            found, lambda name, each: damaged(each, todo, found) if wanted in name else each, packed
        )
    if draw(st.integers(0, 4)) == 0:  # as EfficientSAM-S is published
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packed) as archive:
            archive.writestr("weights.pt", found)
        found = buffer.getvalue()
    return draw(st.sampled_from(["w.pt", "w.bin", "w.pt.zip"])), found


def _header(content: bytes) -> tuple[Any, bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@st.composite
def _safetensors(draw: Any, content: bytes) -> bytes:
    """``content`` with a changed header and its length."""
    header, data = _header(content)
    text = written(changed(header, draw(changes(2)))).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + data


@st.composite
def _shards(draw: Any) -> dict[str, bytes]:
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(TENSORS)}
    shards = {file: save({name: TENSORS[name]}) for name, file in weight_map.items()}
    index = changed(
        {"metadata": {"total_size": 32}, "weight_map": weight_map},
        draw(changes(2, st.sampled_from(SHARD_NAMES))),
    )
    return {"model.safetensors.index.json": written(index).encode("utf-8", "replace"), **shards}


SHARD_NAMES = [
    *("../w.pt", "/etc/passwd", "model.safetensors.index.json", ".", "", "model-0.safetensors"),
    *("\x00", "\ud83d", "gone.safetensors", "a/b.safetensors", "x" * 999, 3, None, [], {}),
]


def _fusion_weights() -> TrainedWeights:
    streams = {"grid": {"encoder": "blip"}, "segmentation": {"encoder": "efficient_sam"}}
    section: dict[str, Any] = {"arch": "pnp_vqa_fusion", "model_type": "mini", "streams": streams}
    section["fusion"] = {"name": "grid_only"}
    vocabulary = {"answers": ["yes", "no"], "overall": "yes", "by_form": {"is it": "no"}}
    config = {"model": section, "run": {"seed": 1}}
    return TrainedWeights(TENSORS, config, "answer_accuracy", 0.5, 7, {"vocabulary": vocabulary})


def _run_state() -> RunState:
    ranks = [
        RankState(
            {"cpu": torch.arange(9).byte()}, {"loss": torch.ones(1)}, {"python": [3, [1], None]}
        )
        for _ in range(2)
    ]
    return RunState(
        step=7,
        model=TENSORS,
        optimizer={"weight": {"exp_avg": torch.ones(2, 3), "step": torch.tensor(7.0)}},
        ranks=ranks,
        validated_at=5,
        best=0.5,
        best_step=5,
        waited=1,
        skipped=2,
        skipped_in_a_row=0,
        left_out=3,
        progress={"elapsed": 3.5},
        log={"bytes": 12, "wandb": None},
        batches={"layout": "abc", "processes": 2},
        config={"run": {"seed": 1, "trainable": ["*"]}, "model": {"fusion": {"name": "difnet"}}},
        versions={"python": "3.11.0", "packages": {}},
    )


class _Json:
    """Replaces a module that writes facts, to record or change them."""

    def __init__(self, text: str | None = None) -> None:
        self.facts: Any = None
        self.text = text

    def dumps(self, facts: Any) -> str:
        self.facts = facts
        return json.dumps(facts) if self.text is None else self.text

    loads = staticmethod(json.loads)


def _facts_of(kind: str, text: str | None = None) -> tuple[Any, bytes]:
    """Facts of a file of this kind, and the file with ``text`` in their place."""
    with tempfile.TemporaryDirectory() as place, patch.object(files, "_flush", lambda path: None):
        folder = Path(place)
        if kind == "fusion":
            with patch.object(fusion_weights, "json", _Json(text)) as noted:
                _fusion_weights().save(folder / "w.safetensors")
        else:
            with patch.object(run_state, "json", _Json(text)) as noted:
                _run_state().save(folder)
        (file,) = folder.iterdir()
        return noted.facts, file.read_bytes()


@cache
def _sound(kind: str) -> tuple[Any, bytes]:
    return _facts_of(kind)


@st.composite
def weights(draw: Any) -> tuple[dict[str, bytes], str]:
    """Files, and the kind to read them as."""
    kind = draw(st.sampled_from(["torch", "safetensors", "shards", "fusion", "fusion", "state"]))
    if kind == "shards":
        found = draw(_shards())
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(found)))
            found[name] = damaged(found[name], draw(deeds(WORDS, 2)))
        return found, kind
    if kind == "torch":
        name, content = draw(_torch_files())
    elif kind == "safetensors":
        name, content = "w.safetensors", draw(_safetensors(save(TENSORS)))
    else:
        name = "w.safetensors" if kind == "fusion" else "state_00000007.safetensors"
        facts, content = _sound(kind)
        way = draw(st.sampled_from(["facts", "facts", "header", "bytes"]))
        if way == "facts":
            content = _facts_of(kind, written(changed(facts, draw(changes(2)))))[1]
        elif way == "header":
            content = draw(_safetensors(content))
    if draw(st.integers(0, 2)) == 0:
        content = damaged(content, draw(deeds(WORDS)), save(TENSORS))
    return {name: content}, kind


@cache
def _config() -> Config:
    """The config of a resumed run; only its changeable keys matter."""
    yaml = Path(__file__).parents[2] / "projects" / "pnp-vqa" / "train" / "gqa_small.yaml"
    return Config(Namespace(cfg_path=str(yaml), options=[]))


def read_weights(folder: Path, kind: str) -> None:
    """Read the file as its kind, and use the result."""
    (file,) = folder.iterdir() if kind != "shards" else [folder]
    if kind == "state":
        state = RunState.load(file)
        assert isinstance(state.step, int)
        now = _run_state()
        check_fits(state, _config(), now.config, now.batches)
        return
    if kind == "fusion":
        saved = TrainedWeights.load(file)
        vocabulary = _vocabulary_of(saved)
        assert vocabulary is None or all(isinstance(a, str) for a in vocabulary.answers)
        section = model_section(str(file), None, [])
        assert section.fusion_weights == str(file)
        tensors = dict(saved.state)
    else:
        tensors = read_state_dict(resolve(str(file), key="model.streams.grid.weights"))
    assert tensors
    load_into(nn.Linear(3, 2), tensors, name="Linear")
