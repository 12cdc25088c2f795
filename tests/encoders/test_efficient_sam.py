"""EfficientSAM's image encoder: parity with the authors' at any size, and their files."""

from pathlib import Path

import pytest
import torch

from lavis_ext.common.errors import UserError
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam, EfficientSamConfig
from tests.parity import normal, reference, set_weights

SMALL = {"image_size": 64, "width": 96, "depth": 2, "heads": 3, "weights": None}


def small(**changes: object) -> EfficientSam:
    torch.manual_seed(0)
    return EfficientSam(EfficientSamConfig(**{**SMALL, **changes})).eval()  # type: ignore[arg-type]


def test_embedding_is_the_authors() -> None:
    encoder = EfficientSam(EfficientSamConfig(image_size=256, weights=None)).eval()
    set_weights(encoder)
    images = torch.sigmoid(normal("ti256.image", (2, 3, 256, 256)))
    with torch.no_grad():
        tokens = encoder.encode(images)
    embedding = tokens.transpose(1, 2).unflatten(2, encoder.grid_of(256, 256))
    expected = reference("efficient_sam", "embed")
    torch.testing.assert_close(embedding[:, ::8], expected, atol=1e-5, rtol=1e-5)


def test_uint8_and_unit_range_are_the_same_image() -> None:
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    encoder = small()
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.encode(images), encoder.encode(images / 255), atol=1e-5, rtol=0
        )
    with pytest.raises(TypeError, match="int64"):
        encoder.encode(images.long())


def test_tokens_lie_row_by_row_on_a_wide_grid() -> None:
    encoder = small(depth=1)
    image = torch.full((1, 3, 48, 80), 0.5)
    changed = image.clone()
    changed[:, :, 16:32, 48:64] = 1.0
    with torch.no_grad():
        # Without attention, a patch reaches its own token and, through the neck, its neighbors.
        encoder.image_encoder.blocks[0].attn.proj.weight.zero_()
        tokens, other = encoder.encode(image), encoder.encode(changed)
    assert encoder.grid_of(48, 80) == (3, 5)
    assert tokens.shape == (1, 15, 256)
    moved = (tokens - other).abs().amax(dim=(0, 2)).unflatten(0, (3, 5)) > 1e-6
    expected = torch.zeros(3, 5, dtype=torch.bool)
    expected[:, 2:] = True
    assert torch.equal(moved, expected)


def test_positions_matter_in_an_untrained_encoder() -> None:
    with torch.no_grad():
        tokens = small().encode(torch.full((1, 3, 64, 64), 0.5))
    assert tokens.std(dim=1).max() > 1e-2


@pytest.mark.parametrize("size", [(60, 64), (64, 60), (0, 16)])
def test_sides_off_the_patch_grid_are_errors(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]}.*multiples of 16"):
        small().encode(torch.zeros(1, 3, *size))


def test_the_authors_file_loads_completely(tmp_path: Path) -> None:
    source = small()
    torch.save({"model": source.state_dict()}, tmp_path / "efficient_sam.pt")
    torch.manual_seed(1)
    loaded = small(weights=str(tmp_path / "efficient_sam.pt"))
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in source.state_dict().items())
    count = len(source.state_dict())
    assert f"{count} of {count} parameters found, 0 missing, 0 unexpected" in str(
        loaded.load_report
    )
    with pytest.raises(UserError, match=r"pos_embed \(checkpoint 1x197x96, model 1x197x48\)"):
        small(width=48, weights=str(tmp_path / "efficient_sam.pt"))


def test_an_image_encoder_alone_loads_if_allowed(tmp_path: Path) -> None:
    source = small()
    alone = {n: t for n, t in source.state_dict().items() if n.startswith("image_encoder.")}
    torch.save(alone, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match=r"missing: .*_(en|de)coder\..*allow_missing"):
        small(weights=str(tmp_path / "encoder.pt"))
    loaded = small(
        weights=str(tmp_path / "encoder.pt"), allow_missing=["prompt_encoder.*", "mask_decoder.*"]
    )
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), source.encode(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 65}, r"efficient_sam\.image_size is 65.*multiple"),
        ({"heads": 5}, r"efficient_sam\.heads is 5.*divide width 96"),
        ({"neck_width": 40}, r"efficient_sam\.decoder_heads is 8.*divide neck_width 40"),
        ({"decoder_upscaling": []}, r"efficient_sam\.decoder_upscaling is empty"),
        (
            {"decoder_upscaling": [8, 0]},
            r"efficient_sam\.decoder_upscaling is 0.*at least 1",
        ),
        ({"iou_head_depth": 1}, r"efficient_sam\.iou_head_depth is 1.*at least 2"),
        ({"weights": "no/such/file.pt"}, r"efficient_sam\.weights.*no/such/file\.pt"),
    ],
)
def test_wrong_configs_name_their_key(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)
