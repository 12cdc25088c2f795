"""Any model of timm as an encoder, with random weights at toy size."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from lavis_ext.common.errors import UserError
from lavis_ext.encoders import timm as timm_encoder
from lavis_ext.encoders.timm import TimmConfig, TimmEncoder

VIT, SWIN, CNN = "test_vit", "swin_tiny_patch4_window7_224", "test_resnet"
SIDE = 160
"""Side of the images that timm's test models have by default."""


def build(model: str = CNN, **options: Any) -> TimmEncoder:
    torch.manual_seed(0)
    config = TimmConfig(**{"model": model, "image_size": SIDE, **options})
    return TimmEncoder(config, "model.streams.texture").eval()


def pictures(side: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def check_layout(encoder: TimmEncoder, width: int, grid: tuple[int, int], prefix: int) -> None:
    """The declared layout, and that of tokens of two images."""
    assert (encoder.width, encoder.grid, encoder.prefix) == (width, grid, prefix)
    with torch.no_grad():
        tokens = encoder(pictures(encoder.image_size))
    assert tokens.values.shape == (2, prefix + grid[0] * grid[1], width)
    assert (tokens.grid, tokens.prefix) == (grid, prefix)


@pytest.mark.parametrize(
    ("model", "side", "width", "grid", "prefix"),
    [
        (VIT, 160, 64, (10, 10), 1),
        (VIT, 96, 64, (6, 6), 1),
        (SWIN, 224, 768, (7, 7), 0),
        (SWIN, 128, 768, (4, 4), 0),
        (CNN, 160, 96, (5, 5), 0),
        (CNN, 64, 96, (2, 2), 0),
    ],
)
def test_tokens_have_the_declared_layout(
    model: str, side: int, width: int, grid: tuple[int, int], prefix: int
) -> None:
    check_layout(build(model, image_size=side), width, grid, prefix)


@pytest.mark.parametrize("model", [VIT, SWIN, CNN])
def test_tokens_are_timms_features_row_by_row(model: str) -> None:
    side = 224 if model == SWIN else SIDE
    encoder = build(model, image_size=side)
    images = pictures(side)
    with torch.no_grad():
        found = encoder.encode(images)
        raw = encoder.network.forward_features(encoder.normalize(images))
    if model == CNN:  # [B, D, h, w]
        raw = raw.permute(0, 2, 3, 1)
    if model != VIT:  # [B, h, w, D]
        raw = raw.flatten(1, 2)
    assert torch.equal(found, raw)


@pytest.mark.parametrize(
    ("model", "side", "index", "width", "grid"),
    [
        (VIT, 160, 2, 64, (10, 10)),
        (SWIN, 224, 1, 192, (28, 28)),
        (SWIN, 224, -1, 768, (7, 7)),
        (CNN, 160, 2, 48, (20, 20)),
        (CNN, 160, -1, 96, (5, 5)),
    ],
)
def test_features_of_a_stage_have_its_layout(
    model: str, side: int, index: int, width: int, grid: tuple[int, int]
) -> None:
    encoder = build(model, image_size=side, output="features", feature_index=index)
    check_layout(encoder, width, grid, prefix=0)


def test_features_are_those_of_timms_features_only() -> None:
    encoder = build(CNN, output="features", feature_index=3)
    torch.manual_seed(0)
    theirs = timm.create_model(CNN, features_only=True, out_indices=[3]).eval()
    theirs.load_state_dict(encoder.network.state_dict(), strict=False)
    images = pictures(SIDE)
    with torch.no_grad():
        (expected,) = theirs(encoder.normalize(images))
        found = encoder.encode(images)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2))


def test_later_stages_than_the_chosen_one_are_not_built() -> None:
    def size(index: int) -> int:
        encoder = build(SWIN, image_size=224, output="features", feature_index=index)
        return sum(parameter.numel() for parameter in encoder.parameters())

    assert size(0) < size(1) < size(-1)


def test_building_does_not_change_batch_norm_statistics() -> None:
    statistics = {
        name: tensor for name, tensor in build(CNN).network.named_buffers() if "running" in name
    }
    assert statistics
    for name, tensor in statistics.items():
        assert torch.equal(tensor, torch.full_like(tensor, float("var" in name)))


@pytest.mark.parametrize("model", [VIT, SWIN, CNN])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_saved_from_timm_give_timms_tokens(tmp_path: Path, model: str, suffix: str) -> None:
    side = 224 if model == SWIN else SIDE
    torch.manual_seed(3)
    theirs = timm.create_model(model).eval()  # with the classifier
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    encoder = build(model, image_size=side, weights=str(path))
    images = pictures(side)
    with torch.no_grad():
        expected = theirs.forward_features(encoder.normalize(images))
        found = encoder.encode(images)
    # Not bit for bit: weights are laid out differently, and kernels sum in another order.
    ours, timms = (each.flatten().sort().values for each in (found, expected))
    torch.testing.assert_close(ours, timms, rtol=1e-4, atol=1e-5)
    report = encoder.load_report
    assert report is not None
    assert report.missing == ()
    assert {name.split(".")[0] for name in report.unexpected} <= {"fc", "head"}
    assert str(path) in str(report)


def test_weights_of_another_model_are_rejected(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=rf"timm {CNN} from .*: the weights don't match"):
        build(CNN, weights=str(tmp_path / "vit.safetensors"))


def test_weights_that_are_missing_name_their_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.streams\.texture\.weights: "):
        build(CNN, weights=str(tmp_path / "gone.safetensors"))


def test_pretrained_weights_come_from_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    published = timm.create_model(CNN, num_classes=0)
    asked: list[tuple[str, bool]] = []

    def create_model(name: str, *, pretrained: bool, num_classes: int) -> torch.nn.Module:
        asked.append((name, pretrained))
        return published

    monkeypatch.setattr(timm_encoder.timm, "create_model", create_model)
    encoder = build(CNN, weights="pretrained")
    assert asked == [(CNN, True)]
    assert encoder.network is published
    assert str(encoder.load_report).startswith(f"timm {CNN} from the hub: ")


def test_an_error_of_the_hub_names_model_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*_: Any, **__: Any) -> torch.nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm_encoder.timm, "create_model", create_model)
    with pytest.raises(
        UserError, match=rf"timm can't make {CNN} with weights: pretrained .*no network"
    ):
        build(CNN, weights="pretrained")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tets_resnet"}, r"texture\.model is 'tets_resnet'.*Did you mean 'test_resnet'"),
        ({"model": VIT, "image_size": 100}, r"texture\.image_size is 100, which test_vit doesn't"),
        ({"output": "features", "feature_index": 9}, r"feature_index is 9; .* stages 0 to 4"),
        ({"output": "map"}, r"texture\.output is 'map'; it must be one of: tokens, features"),
    ],
)
def test_wrong_options_name_their_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_images_of_another_size_are_errors() -> None:
    with pytest.raises(UserError, match=r"is built for 160x160 pixels, but got images of 96x96"):
        build().encode(pictures(96))


def test_the_fingerprint_tells_sizes_stages_and_weights_apart() -> None:
    def identity(**options: Any) -> tuple[str, str]:
        encoder = build(CNN, **options)
        return encoder.fingerprint(), str(encoder.fingerprint_options())

    assert identity() == identity()
    others = [
        identity(image_size=64),
        identity(output="features", feature_index=2),
        identity(output="features", feature_index=3),
    ]
    assert len({identity(), *others}) == 4
    retrained = build(CNN)
    with torch.no_grad():
        next(retrained.network.parameters()).add_(1)
    assert retrained.fingerprint() != build(CNN).fingerprint()
