"""``model.streams``: encoders by name, typed and built."""

from typing import Any

import pytest
import torch

from lavis_ext.common.errors import UserError
from lavis_ext.config.renamed import rename_old_keys
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam, EfficientSamConfig
from lavis_ext.encoders.streams import build_streams, streams_of, typed_streams
from lavis_ext.encoders.timm import TimmConfig, TimmEncoder
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests.tiny import BLIP, EFFICIENT_SAM, SIDE, STREAMS, THIRD, make_model, make_samples

WHERE = "model.streams"


def test_streams_keep_the_order_of_the_config() -> None:
    names = ["texture", "grid", "segmentation"]
    sections = {"texture": THIRD, **STREAMS}
    configs = typed_streams(sections, WHERE)
    assert list(configs) == names
    assert [type(each) for each in configs.values()] == [
        TimmConfig,
        BlipEncoderConfig,
        EfficientSamConfig,
    ]
    built = build_streams(configs, names[::-1], WHERE)
    assert [type(each) for each in built.values()] == [EfficientSam, BlipEncoder, TimmEncoder]
    assert list(build_streams(configs, ["segmentation"], WHERE)) == ["segmentation"]


def test_the_first_stream_gives_the_fused_tokens_their_layout() -> None:
    samples = make_samples()
    sides = {"grid": SIDE, "small": SIDE // 2}
    small = {"encoder": "blip", **BLIP, "image_size": SIDE // 2}
    pixels = torch.rand(4, 3, SIDE, SIDE)
    samples["images"] = {
        name: torch.nn.functional.interpolate(pixels, side) for name, side in sides.items()
    }
    for first, second in (("grid", "small"), ("small", "grid")):
        streams = {"grid": STREAMS["grid"], "small": small}
        model = make_model({"itm": None}, streams={name: streams[name] for name in (first, second)})
        patches = (sides[first] // BLIP["patch_size"]) ** 2
        assert model.fuse(samples).shape == (4, 1 + patches, BLIP["vision_width"])


def test_two_streams_may_have_the_same_encoder() -> None:
    sections = {
        "fine": {"encoder": "efficient_sam", **EFFICIENT_SAM, "patch_size": 8},
        "coarse": {"encoder": "efficient_sam", **EFFICIENT_SAM},
    }
    configs = typed_streams(sections, WHERE)
    assert streams_of(configs, EfficientSamConfig) == ["fine", "coarse"]
    assert streams_of(configs, BlipEncoderConfig) == []
    built = build_streams(configs, configs, WHERE)
    assert [each.grid for each in built.values()] == [(4, 4), (2, 2)]
    fine, coarse = built.values()
    assert fine.fingerprint() != coarse.fingerprint()


def test_two_streams_of_one_encoder_are_both_read() -> None:
    streams: dict[str, Any] = {
        "grid": STREAMS["grid"],
        "fine": {"encoder": "efficient_sam", **EFFICIENT_SAM, "patch_size": 8},
        "coarse": {"encoder": "efficient_sam", **EFFICIENT_SAM},
    }
    model = make_model({"itm": None}, streams=streams).eval()
    torch.nn.init.ones_(model.fusion.gate)
    samples = make_samples()
    pixels = samples["images"]["segmentation"]
    samples["images"] = {"grid": samples["images"]["grid"], "fine": pixels, "coarse": pixels}
    before = model.fuse(samples)
    for name in ("fine", "coarse"):
        changed = {**samples["images"], name: pixels.flip(0)}
        assert not torch.allclose(before, model.fuse({**samples, "images": changed}))


def test_without_load_weights_no_file_is_opened() -> None:
    sections = {"grid": {**STREAMS["grid"], "weights": "/nowhere/w.safetensors"}}
    configs = typed_streams(sections, WHERE)
    built = build_streams(configs, ["grid"], WHERE, load_weights=False)
    assert built["grid"].load_report is None
    assert configs["grid"].weights == "/nowhere/w.safetensors"
    with pytest.raises(UserError, match=r"^model\.streams\.grid\.weights: "):
        build_streams(configs, ["grid"], WHERE)


def test_old_keys_are_the_streams_grid_and_segmentation() -> None:
    tree = {"model": {"blip": {"image_size": 64}, "efficient_sam": {"width": 24}}}
    found = rename_old_keys(tree, PnpVqaFusion.OLD_KEYS)
    assert found == {
        "model.blip": "model.streams.grid",
        "model.efficient_sam": "model.streams.segmentation",
    }
    configs = typed_streams(tree["model"]["streams"], WHERE)
    assert list(configs) == ["grid", "segmentation"]
    assert isinstance(configs["grid"], BlipEncoderConfig)
    assert configs["grid"].image_size == 64
    assert isinstance(configs["segmentation"], EfficientSamConfig)
    assert configs["segmentation"].width == 24


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"grid": {"encoder": "blib"}}, r"^model\.streams\.grid\.encoder: .*'blib'.*blip"),
        ({"grid": {"image_size": 3}}, r"^model\.streams\.grid\.encoder is missing; .*blip.*timm"),
        ({"grid": None}, r"^model\.streams\.grid\.encoder is missing"),
        ({"grid": {"encoder": "timm", "widht": 3}}, r"^model\.streams\.grid\.widht: .*no such key"),
        ({"a b": {"encoder": "blip"}}, r"^model\.streams\.a b: .*name"),
        ({"keys": {"encoder": "blip"}}, r"^model\.streams\.keys: .*name"),
        ({}, r"^model\.streams is \{\}"),
        (["blip"], r"^model\.streams is \['blip'\]"),
    ],
)
def test_wrong_streams_name_their_key(sections: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed_streams(sections, WHERE)
