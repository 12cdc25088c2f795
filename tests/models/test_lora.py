"""LoRA on any layers: its output, its names in files, and rejected configs."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.typed import typed
from lavis_ext.models.lora import LoraConfig, adapt, file_name, is_lora, merge
from lavis_ext.models.merge import merge_file
from lavis_ext.models.pnp_vqa.config import PnpVqaFusionConfig
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from lavis_ext.runners.freezing import freeze_all_but, parts_table, train_mode
from tests.tiny import make_samples, model_section, vocabulary

TEXT = "streams.grid.blip.text_encoder.encoder.layer"
ENTRIES = [
    {"modules": [f"{TEXT}.[01]"], "rank": 4},
    {"modules": ["streams.grid.blip.vision_model.*"], "rank": 2, "alpha": 3.5, "dropout": 0.1},
]


def make(entries: list[dict[str, Any]]) -> PnpVqaFusion:
    torch.manual_seed(0)
    section = {**model_section({"itm": {}}), "lora": entries}
    return PnpVqaFusion(typed(PnpVqaFusionConfig, section, "model"), vocabulary()).eval()


def loss(model: nn.Module) -> torch.Tensor:
    return sum(model(make_samples()).losses.values(), torch.zeros(()))


def disturbed(model: PnpVqaFusion) -> PnpVqaFusion:
    """As after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def saved(model: PnpVqaFusion, path: Path, lora: list[dict[str, Any]]) -> Path:
    state = {file_name(name): tensor for name, tensor in model.exported_state().items()}
    config = {"model": {"arch": "pnp_vqa_fusion", "lora": lora}}
    TrainedWeights(state, config, None, None, 1).save(path)
    return path


def test_an_adapted_model_is_unchanged_until_trained() -> None:
    plain, adapted = make([]), make(ENTRIES)
    assert torch.equal(loss(plain), loss(adapted))
    assert not torch.equal(loss(plain), loss(disturbed(adapted)))


def test_a_compiled_adapted_model_computes_the_same() -> None:
    model = disturbed(make(ENTRIES))
    expected = loss(model)
    model.compile_parts("eager")
    torch.testing.assert_close(loss(model), expected, rtol=1e-5, atol=1e-5)


def test_features_of_an_adapted_encoder_are_never_taken_for_those_of_another() -> None:
    prints = {model.streams["grid"].fingerprint() for model in (make([]), disturbed(make(ENTRIES)))}
    assert len(prints) == 2


def test_adapters_are_trained_and_adapted_weights_are_not() -> None:
    model = make(ENTRIES)
    freeze_all_but(model, ["fusion.gate", f"{TEXT}.1.*"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    query = f"{TEXT}.1.attention.self.query"
    assert f"{query}.lora_A.default.weight" in trained
    assert f"{query}.base_layer.weight" not in trained
    assert f"{TEXT}.1.output.LayerNorm.weight" in trained
    freeze_all_but(model, [])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(
        filter(is_lora, dict(model.named_parameters()))
    )
    train_mode(model)
    loss(model).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    rows = {line.split()[0]: line.split()[1:] for line in str(parts_table(model)).splitlines()}
    count = sum(p.numel() for n, p in model.named_parameters() if is_lora(n))
    assert rows["streams.grid"][1] == rows["total"][1] == f"{count:,}"


def test_patterns_of_adapted_weights_alone_are_errors() -> None:
    with pytest.raises(UserError, match=r"no parameter matches .*query\.base_layer\.weight"):
        freeze_all_but(make(ENTRIES), [f"{TEXT}.1.attention.self.query.base_layer.weight"])


def test_files_have_the_modules_names_and_load_into_another_model(tmp_path: Path) -> None:
    model = disturbed(make(ENTRIES))
    path = saved(model, tmp_path / "a.safetensors", ENTRIES)
    weights = TrainedWeights.load(path)
    query = f"{TEXT}.0.attention.self.query"
    assert {f"{query}.weight", f"{query}.lora_A.weight", f"{query}.lora_B.weight"} <= {
        *weights.state
    }
    other = make(ENTRIES)
    other.load_trained(weights, "a")
    assert torch.equal(loss(model), loss(other))


def test_a_file_new_updates_starts_an_adapted_model(tmp_path: Path) -> None:
    plain = make([])
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.01)
    adapted = make(ENTRIES)
    adapted.load_trained(TrainedWeights.load(saved(plain, tmp_path / "a.safetensors", [])), "a")
    assert torch.equal(loss(plain), loss(adapted))


def test_merged_weights_are_plain_and_give_the_same(tmp_path: Path) -> None:
    model = disturbed(make(ENTRIES))
    before = loss(model)
    names = merge(model)
    assert f"{TEXT}.0.attention.self.query.weight" in names
    assert dict(model.named_parameters()).keys() == dict(make([]).named_parameters()).keys()
    torch.testing.assert_close(loss(model), before, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.equal(loss(make([])), before)


def test_a_file_with_adapters_is_rejected_by_a_model_without(tmp_path: Path) -> None:
    weights = TrainedWeights.load(saved(make(ENTRIES), tmp_path / "a.safetensors", ENTRIES))
    with pytest.raises(UserError, match=r"layers in the file but not in the model"):
        make([]).load_trained(weights, "a")
    smaller = [{**ENTRIES[0], "rank": 2}, ENTRIES[1]]
    with pytest.raises(UserError, match=r"of another shape.*lora_A"):
        make(smaller).load_trained(weights, "a")


def test_layers_of_two_entries_are_told_apart_in_the_error() -> None:
    """Their names differ near the end, beyond the length of a line."""
    with pytest.raises(UserError) as error:
        make([{"modules": ["*.query"]}, {"modules": [f"{TEXT}.0.*"]}])
    names = str(error.value).partition("layer(s): ")[2].split(". A layer")[0].split(", ")
    assert len(names) == len({*names}) == 2
    assert all(name.endswith("tion.self.query") for name in names)


def test_an_existing_or_unwritable_target_of_a_merge_is_rejected_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(make(ENTRIES), tmp_path / "a.safetensors", ENTRIES)
    loaded: list[int] = []
    monkeypatch.setattr(PnpVqaFusion, "from_config", lambda *_, **__: loaded.append(1))
    content = source.read_bytes()
    with pytest.raises(UserError, match=r"a\.safetensors exists already; name a new file"):
        merge_file(source, source)
    with pytest.raises(UserError, match=r"out can't be written \(Not a directory\)"):
        merge_file(source, source / "out")
    with pytest.raises(UserError, match=r"out can't be written \(No such file or directory\)"):
        merge_file(source, tmp_path / "gone" / "out")
    with pytest.raises(UserError, match=r"can't be written \(File name too long\)"):
        merge_file(source, tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"out can't be written \(Permission denied\)"):
        merge_file(source, tmp_path / "out")
    assert not loaded
    assert source.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (
            [{"modules": ["streams.grit.blip.itm_hed"]}],
            r"model\.lora\[0\]\.modules: no linear or convolution layer matches "
            r"'streams\.grit\.blip\.itm_hed'\. Nearest: streams\.grid\.blip\.itm_head",
        ),
        (
            [{"modules": [f"{TEXT}.*"]}, {"modules": ["*.query"]}],
            r"model\.lora\[0\] and model\.lora\[1\] both match \d+ layer",
        ),
        ([{"modules": ["*.query"], "rank": 0}], r"model\.lora\[0\]\.rank is 0; it must be at leas"),
        ([{"modules": ["*.query"], "alpha": 0}], r"model\.lora\[0\]\.alpha is 0.0; it must be abo"),
        (
            [{"modules": ["*.query"], "rnk": 4}],
            r"model\.lora\[0\]\.rnk: there is no such key\. Did",
        ),
        ([{"modules": []}], r"model\.lora\[0\]\.modules is empty"),
        ([{"modules": "*.query"}], r"model\.lora\[0\]\.modules is '\*\.query'; it must be a list"),
    ],
)
def test_wrong_entries_are_rejected(entries: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(entries)


def test_layers_that_are_read_past_their_forward_pass_or_tied_are_not_adapted() -> None:
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "last": nn.Linear(4, 4)})
    adapt(attention, [LoraConfig(["*"])])
    adapted = {name.split(".lora")[0] for name, _ in attention.named_parameters() if "lora" in name}
    assert adapted == {"last"}
    tied = nn.ModuleDict({"words": nn.Embedding(4, 4), "scores": nn.Linear(4, 4, bias=False)})
    tied["scores"].weight = tied["words"].weight
    with pytest.raises(UserError, match=r"the weight of scores is tied to words\.weight"):
        adapt(tied, [LoraConfig(["scores"])])
