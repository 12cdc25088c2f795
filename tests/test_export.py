"""Weights leave for other programs, which then compute the same."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lavis_ext.__main__ import main as package_main
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.encoders.blip.encoder import BlipEncoder
from lavis_ext.export import main
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion
from tests import tiny
from tests.tiny import QUESTIONS, make_model, make_samples, model_section

OBJECTIVES: dict[str, Any] = {"itm": None}


def trained(path: Path, fusion: dict[str, Any] | None = None, **streams: Any) -> PnpVqaFusion:
    """A model with a trained part of BLIP, and its weights as training writes them to ``path``."""
    sections = {**tiny.STREAMS, "grid": {**tiny.STREAMS["grid"], **streams}}
    model = make_model(OBJECTIVES, fusion, streams=sections).eval()
    for parameter in model.blip.blip.text_encoder.parameters():
        parameter.requires_grad_(True)
        with torch.no_grad():
            parameter.mul_(1.5)
    config = {"model": model_section(OBJECTIVES, fusion, sections)}
    facts = model.exported_facts()
    TrainedWeights(model.exported_state(), config, None, None, 3, facts).save(path)
    return model


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@torch.no_grad()
def transformers_scores(folder: Path, encoder: BlipEncoder, images: Tensor) -> Tensor:
    blip = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    processor = transformers.BlipProcessor.from_pretrained(folder)
    texts = processor.tokenizer(QUESTIONS[: len(images)], return_tensors="pt", padding=True)
    pixels = processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
    texts["input_ids"][:, 0] = encoder.enc_token_id
    found: Tensor = blip(
        input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], pixel_values=pixels
    ).itm_score
    return found


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_transformers_gives_the_same_scores_of_an_exported_blip(
    eps: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that were trained stand in it in place of those they began from."""
    weights = tmp_path / "fusion_encoder_best.safetensors"
    encoder = trained(weights, vision_layer_norm_eps=eps).blip
    main(["--weights", str(weights), "--to", "transformers", str(tmp_path / "out" / "blip")])
    assert "BlipForImageTextRetrieval" in capsys.readouterr().out
    images = make_samples()["images"]["grid"]
    with torch.no_grad():
        ours = encoder.match(encoder.encode(images), encoder.pack(QUESTIONS[: len(images)]))
    theirs = transformers_scores(tmp_path / "out" / "blip", encoder, images)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert (ours[0] - ours[1]).abs().max() > 1e-3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["blip"]


def test_an_exported_folder_is_a_place_to_start_from(tmp_path: Path) -> None:
    encoder = trained(tmp_path / "w.safetensors", vision_layer_norm_eps=1e-3).blip
    main(
        ["--weights", str(tmp_path / "w.safetensors"), "--to=transformers", str(tmp_path / "blip")]
    )
    options = {"weights": str(tmp_path / "blip"), "tokenizer": str(tmp_path / "blip")}
    sections = {**tiny.STREAMS, "grid": {**tiny.STREAMS["grid"], **options}}
    again = make_model(OBJECTIVES, seed=5, streams=sections).eval().blip
    images = make_samples()["images"]["grid"]
    with torch.no_grad():
        scores = [
            each.match(each.encode(images), each.pack(QUESTIONS[: len(images)]))
            for each in (encoder, again)
        ]
    assert torch.equal(*scores)


@pytest.mark.parametrize(("target", "entries"), [("authors", 48), ("authors_lrp", 44)])
def test_difnet_exported_to_its_authors_format_loads_again(
    target: str, entries: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(tmp_path / "w.safetensors")
    out = tmp_path / "DIFNet.pth"
    main(["--weights", str(tmp_path / "w.safetensors"), "--to", target, str(out)])
    assert "adapter and gate have no place" in capsys.readouterr().out
    state = torch.load(out, weights_only=True)["state_dict"]
    assert len(state) == entries
    assert all(name.startswith("encoder.layers.") for name in state)
    again = make_model(OBJECTIVES, {**tiny.DIFNET, "weights": str(out)}, seed=5)
    assert [report.name for report in again.load_reports] == [f"fusion difnet from {out}"]
    ours, theirs = model.fusion.encoder.state_dict(), again.fusion.encoder.state_dict()
    assert all(torch.equal(theirs[name], each) for name, each in ours.items())


def test_trained_fusion_weights_need_no_initial_weights_file(tmp_path: Path) -> None:
    first = trained(tmp_path / "first.safetensors")
    out = tmp_path / "DIFNet.pth"
    main(["--weights", str(tmp_path / "first.safetensors"), "--to=authors", str(out)])
    second = trained(tmp_path / "second.safetensors", {**tiny.DIFNET, "weights": str(out)})
    out.unlink()
    main(["--weights", str(tmp_path / "second.safetensors"), "--to=authors", str(out)])
    state = torch.load(out, weights_only=True)["state_dict"]
    name = "layers.0.mhatt.attention.fc_q.weight"
    assert torch.equal(state[f"encoder.{name}"], second.fusion.encoder.state_dict()[name])
    assert torch.equal(state[f"encoder.{name}"], first.fusion.encoder.state_dict()[name])


def test_an_unsupported_export_is_rejected_and_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    trained(weights, {"name": "sum"})
    given = ["--weights", str(weights), str(out)]
    assert "transformers, authors, authors_lrp. Did you mean 'authors'?" in refused(
        capsys, *given, "--to", "author"
    )
    assert "The fusion is sum" in refused(capsys, *given, "--to", "authors")
    assert "only model options are" in refused(
        capsys, *given, "--to", "authors", "--options", "run.a=1"
    )
    assert "no file" in refused(capsys, "--weights", str(out), "--to", "authors", str(out))
    assert "is there already" in refused(capsys, *given[:2], "--to", "authors", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "can't be written" in refused(
        capsys, *given[:2], "--to", "transformers", str(tmp_path / "file" / "out")
    )
    trained(weights, {**tiny.DIFNET, "t": 1})
    assert "t 1; the authors' mode difnet_lrp" in refused(capsys, *given, "--to", "authors_lrp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "w.safetensors"]


def test_an_existing_or_unwritable_target_is_rejected_before_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.safetensors"
    trained(weights)
    content = weights.read_bytes()
    loaded: list[int] = []
    monkeypatch.setattr(PnpVqaFusion, "from_config", lambda *_, **__: loaded.append(1))
    given = ["--weights", str(weights), "--to", "authors"]
    assert f"OUT: {weights} is there already" in refused(capsys, *given, str(weights))
    for out, reason in (
        (weights / "sub" / "out", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        assert f"can't be written ({reason})" in refused(capsys, *given, str(out))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "can't be written (Permission denied)" in refused(
        capsys, *given, str(tmp_path / "new" / "out")
    )
    assert not loaded
    assert weights.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_package_runs_its_commands_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "w.safetensors")
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--to", "authors"]
    monkeypatch.setattr("sys.argv", ["lavis_ext", "export", *arguments, str(tmp_path / "d.pth")])
    package_main()
    assert (tmp_path / "d.pth").exists()
    monkeypatch.setattr("sys.argv", ["lavis_ext", "exports"])
    with pytest.raises(SystemExit):
        package_main()
    assert "no command 'exports'; there are: export" in capsys.readouterr().err


def test_options_take_old_names_and_the_models_section_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path / "weights.safetensors")
    arguments = [str(tmp_path / "out"), "--weights", str(tmp_path / "weights.safetensors")]
    arguments += ["--to", "transformers", "--options"]
    error = refused(capsys, *arguments, "model.blip.nonsense=3")
    assert "note: old names in the config: model.blip is now model.streams.grid" in error
    assert "model.streams.grid.nonsense" in error
    assert "'run' isn't an option here" in refused(capsys, *arguments, "run.seed=3")
