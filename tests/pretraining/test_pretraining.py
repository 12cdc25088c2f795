"""The miniature's recipes: data, models and shipped files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import lavis_ext.pretraining  # noqa: F401  (registers the recipes' models)
from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.decoders.blip_captioner import BlipCaptioner
from lavis_ext.decoders.fid_reader import FidReader
from lavis_ext.encoders.blip.encoder import BlipEncoder
from lavis_ext.pretraining.builder import read_split
from lavis_ext.pretraining.datasets import PretrainingDataset, Split
from lavis_ext.pretraining.description_data import (
    LABELS,
    NO_LABEL,
    DescriptionDataConfig,
    DescriptionDataset,
)
from lavis_ext.pretraining.mask_data import MaskDataConfig, MaskDataset
from lavis_ext.pretraining.reading_data import ReadingDataConfig, ReadingDataset
from lavis_ext.pretraining.ship import MINIATURE, ship
from lavis_ext.registry import registry
from lavis_ext.runners.dry_run import describe
from lavis_ext.runners.launch import started

PROJECT = Path(__file__).parents[2]
RECIPES = PROJECT / "projects" / "mini"
DATA = {
    "blip_patches": "mini_gqa_descriptions",
    "blip_close": "mini_gqa_descriptions",
    "efficient_sam": "mini_gqa_masks",
}


@pytest.fixture(scope="module")
def split(mini_gqa: Path) -> Split:
    return read_split(mini_gqa, "train")


def batch(dataset: PretrainingDataset, rows: list[int], epoch: int = 0) -> Any:
    return dataset.__getitems__(BatchRows(np.array(rows), epoch, len(rows)))


DATASETS = [
    (DescriptionDataset, DescriptionDataConfig()),
    (DescriptionDataset, DescriptionDataConfig(close_ups=0.5)),
    (MaskDataset, MaskDataConfig()),
    (ReadingDataset, ReadingDataConfig()),
]


@pytest.mark.parametrize(("kind", "config"), DATASETS, ids=lambda value: type(value).__name__)
def test_a_sample_depends_only_on_record_and_epoch(
    split: Split, kind: type[PretrainingDataset], config: Any
) -> None:
    dataset = kind(config, split, None, seed=0)
    together, other_epoch = batch(dataset, [3, 4, 5]), batch(dataset, [3, 4, 5], epoch=1)
    alone = batch(dataset, [4])
    differs = False
    for name, value in alone.items():
        if name in ("global_size", "image_index"):
            continue
        share = len(together[name]) // 3
        middle = together[name][share : 2 * share]
        same = torch.equal(middle, value) if torch.is_tensor(value) else middle == value
        assert same, name
        later = other_epoch[name][share : 2 * share]
        differs |= not (torch.equal(later, value) if torch.is_tensor(value) else later == value)
    assert differs


def test_captions_are_about_objects_in_their_patches(split: Split) -> None:
    config = DescriptionDataConfig(whole=0, unguided=0, fewest_patches=3, most_patches=3)
    dataset = DescriptionDataset(config, split, None, seed=0)
    samples = batch(dataset, list(range(32)))
    assert samples["patch_mask"].shape == (96, 64)
    assert (samples["patch_mask"].sum(dim=1) == 3).all()
    shown = []
    for row, image_id in enumerate(dataset.records):
        names = [item.name for item in split.graphs[image_id].objects]
        coverage = dataset._coverage(dataset._masks(image_id))
        for number in range(3 * row, 3 * row + 3):
            said = samples["captions"][number].split()[4]
            seen = coverage[:, samples["patch_mask"][number].numpy()].sum(axis=1)
            seen = seen / coverage.sum(axis=1)
            shown.append(seen[[name == said for name in names]].max() == seen.max())
    assert np.mean(shown) > 0.9


def test_patches_are_labeled_with_the_object_that_covers_them(split: Split) -> None:
    dataset = DescriptionDataset(DescriptionDataConfig(captions=0, pairs=0), split, None, seed=0)
    samples = batch(dataset, list(range(32)))
    assert samples["patch_labels"].shape == (32, 64, len(LABELS))
    assert samples["captions"] == samples["texts"] == []
    keys = list(LABELS)
    for labels, image_id in zip(samples["patch_labels"].numpy(), dataset.records, strict=True):
        graph = split.graphs[image_id]
        assert (labels[:, keys.index("weather")] == LABELS["weather"].index(graph.weather)).all()
        coverage = dataset._coverage(dataset._masks(image_id))
        for patch in range(64):
            found = labels[patch, keys.index("color")]
            if coverage[:, patch].max() < 0.25:
                assert found == NO_LABEL
            else:
                item = graph.objects[int(coverage[:, patch].argmax())]
                assert LABELS["color"][found] in item.attributes
                assert LABELS["name"][labels[patch, keys.index("name")]] == item.name


def test_prompts_lie_in_the_masks_that_they_ask_for(split: Split) -> None:
    dataset = MaskDataset(MaskDataConfig(), split, None, seed=0)
    samples = batch(dataset, list(range(32)))
    assert samples["masks"].shape == (128, 128, 128)
    kinds = set()
    for points, labels, mask in zip(
        samples["points"], samples["labels"], samples["masks"], strict=True
    ):
        kinds |= set(labels.tolist())
        for (x, y), label in zip(points.long().tolist(), labels.tolist(), strict=True):
            if label == 1:
                assert mask[y, x] == 1
        if 2 in labels:
            (left, top), (right, bottom) = points[labels == 2][0], points[labels == 3][0]
            rows, columns = mask.nonzero(as_tuple=True)
            assert (columns.min(), columns.max() + 1) == (left, right)
            assert (rows.min(), rows.max() + 1) == (top, bottom)
    assert kinds == {-1, 1, 2, 3}


def test_a_questions_objects_are_described_more_often_than_others(split: Split) -> None:
    config = ReadingDataConfig(errors=0, focus=20, fewest_captions=1, most_captions=1)
    dataset = ReadingDataset(config, split, None, seed=0)
    hits = []
    for row, (image_id, question) in enumerate(dataset.records):
        named = [i.name for i in split.graphs[image_id].objects if i.id in question.objects]
        if named:
            hits.append(batch(dataset, [row])["captions"][0][0].split()[4] in named)
    assert np.mean(hits) > 0.85


def tiny_recipe(
    configured: Callable[..., Config], mini_gqa: Path, tmp_path: Path, recipe: str, *options: str
) -> Config:
    path = RECIPES / f"{recipe}.yaml"
    name = DATA[recipe]
    return configured(
        f"datasets.{name}.root={mini_gqa}",
        f"datasets.{name}.images=40",
        f"datasets.{name}.seed=0",
        f"run.output_dir={tmp_path}",
        "run.max_steps=2",
        "run.batch_size_train=4",
        "run.num_workers=0",
        "run.device=cpu",
        *options,
        cfg_path=path,
    )


def test_a_recipe_trains_and_what_it_ships_loads_as_published_weights_do(
    configured: Callable[..., Config], mini_gqa: Path, tmp_path: Path
) -> None:
    cfg = tiny_recipe(configured, mini_gqa, tmp_path / "runs", "blip_close")
    with started(cfg, ["train", "val", "testdev"]) as runner:
        metrics = runner.train()
        trained = runner.model
    assert set(metrics["testdev"]) >= {"captioning_loss", "matching_accuracy"}
    (run,) = (tmp_path / "runs").iterdir()
    files = ship(run, tmp_path / "shipped")
    for file in files:
        with safe_open(file, framework="pt") as content:
            facts = json.loads(content.metadata()["lavis_ext"])
        assert facts["recipe"] == "blip_close"
        assert facts["data_seed"] == 0
        assert facts["scores"].keys() == metrics["testdev"].keys()
    cfg.model.blip.weights, cfg.model.captioner.weights = map(str, files)
    blip, captioner = BlipEncoder(cfg.model.blip), BlipCaptioner(cfg.model.captioner)
    for part, loaded in ((trained.blip, blip), (trained.captioner, captioner)):
        for (name, one), other in zip(
            part.state_dict().items(), loaded.state_dict().values(), strict=True
        ):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("recipe", ["blip_close", "efficient_sam"])
def test_a_recipe_tells_its_cost_though_its_losses_depend_on_values(
    configured: Callable[..., Config],
    mini_gqa: Path,
    tmp_path: Path,
    recipe: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    describe(tiny_recipe(configured, mini_gqa, tmp_path, recipe), ["train", "val", "testdev"])
    said = capsys.readouterr().out
    assert re.search(r"^FLOPs .*an image [1-9]", said, re.M), said
    assert re.search(r"^measured .* step", said, re.M)


def test_the_image_encoder_begins_with_labels_alone(
    configured: Callable[..., Config], mini_gqa: Path, tmp_path: Path
) -> None:
    cfg = tiny_recipe(configured, mini_gqa, tmp_path, "blip_patches")
    with started(cfg, ["train", "val", "testdev"]) as runner:
        before = {n: p.clone() for n, p in runner.model.named_parameters()}
        metrics = runner.train()
        changed = {n for n, p in runner.model.named_parameters() if not torch.equal(p, before[n])}
    assert metrics["testdev"].keys() == {"loss", "labelling_loss", "labelling_accuracy"}
    assert changed
    assert all(name.startswith(("blip.blip.vision_model.", "labels.")) for name in changed)


def test_text_layers_are_shared_but_for_self_attention(configured: Callable[..., Config]) -> None:
    cfg = configured(cfg_path=RECIPES / "blip_close.yaml")
    model = registry.get_model_class("blip_pretraining").from_config(cfg.model)
    encoder, decoder = model.blip.blip.text_encoder, model.captioner.blip.text_decoder.bert
    own, other = encoder.encoder.layer[0], decoder.encoder.layer[0]
    assert own.crossattention is other.crossattention
    assert own.attention is not other.attention
    assert model.blip.blip.vision_model is model.captioner.blip.vision_model


def test_shipped_fusion_weights_omit_the_training_path(tmp_path: Path) -> None:
    weights = TrainedWeights(
        state={"fusion.gate": torch.ones(2)},
        config={"model": {}, "run": {"output_dir": "/home/somebody", "seed": 3}},
        metric="loss",
        value=0.5,
        step=7,
    )
    (tmp_path / "run").mkdir()
    weights.save(tmp_path / "run" / "fusion_encoder_best.safetensors")
    (file,) = ship(tmp_path / "run", tmp_path / "shipped")
    shipped = TrainedWeights.load(file)
    assert shipped.config["run"] == {"output_dir": "output", "seed": 3}
    assert shipped.step == 7


def test_the_miniature_is_small_and_names_its_recipe() -> None:
    parts = sorted(MINIATURE.glob("*.safetensors"))
    recipes = {path.stem for path in RECIPES.glob("**/*.yaml")}
    assert {path.stem for path in (RECIPES / "fine").glob("*.yaml")} >= {"efficient_sam", "blip"}
    size = 0
    for part in [*parts, *(MINIATURE / "fine").glob("*.safetensors")]:
        if part.name == "fusion_encoder.safetensors":
            assert TrainedWeights.load(part).config["run"]["output_dir"] == "output"
            continue
        size += part.stat().st_size
        with safe_open(part, framework="pt") as content:
            facts = json.loads(content.metadata()["lavis_ext"])
        assert facts["recipe"] in recipes
        assert facts["data_seed"] >= 1000, "scenes of its own"
        assert facts["scores"]
    assert len(parts) == 5
    assert size < 40e6


def test_only_finished_runs_can_be_shipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        ship(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_part_of_the_data_section_is_named(
    configured: Callable[..., Config], mini_gqa: Path, tmp_path: Path
) -> None:
    for option, message in (
        ("most_patches=65", "at most the 64 patches"),
        ("captions=-1", "must be at least 0"),
        ("caption=3", "Did you mean 'captions'"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_recipe(
                configured,
                mini_gqa,
                tmp_path,
                "blip_close",
                f"datasets.mini_gqa_descriptions.{option}",
            )


def test_tokens_are_labeled_by_words_on_both_sides(
    configured: Callable[..., Config],
) -> None:
    cfg = configured(cfg_path=RECIPES / "reader.yaml")
    model = registry.get_model_class("reader_pretraining").from_config(cfg.model)
    bias = model.reader.t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert bias.std() > 2, "position biases near 0 take thousands of steps to matter"
    samples = {
        "questions": ["is the star red?", "which shape is blue?"],
        "captions": [["a large red star", "a blue star"], ["a blue ring"]],
        "about": [[True, False], [True]],
        "answers": ["yes", "ring"],
        "global_size": 2,
    }
    encoded = model.reader.encode(samples["questions"], samples["captions"])
    repeated, about, in_caption = model.token_labels(encoded, samples)
    words = [
        model.reader.tokenizer.convert_ids_to_tokens(ids[own])
        for ids, own in zip(encoded.ids, repeated, strict=True)
    ]
    assert words == [["star", "red", "red", "star"], ["star", "star"], ["blue", "blue"]]
    assert in_caption.sum(dim=1).tolist() == [6, 5, 5]  # with the mark and the end
    assert [bool(row[0]) for row in about] == [True, False, True]
    cfg.model.reader.num_captions_fid = 2
    with pytest.raises(UserError, match="must be 1"):
        registry.get_model_class("reader_pretraining").from_config(cfg.model)


def test_the_reader_can_be_trained_by_its_recipe_s_model(
    configured: Callable[..., Config], split: Split
) -> None:
    cfg = configured(cfg_path=RECIPES / "reader.yaml")
    model = registry.get_model_class("reader_pretraining").from_config(cfg.model)
    assert isinstance(model.reader, FidReader)
    dataset = ReadingDataset(ReadingDataConfig(), split, None, seed=0)
    samples = batch(dataset, [0, 1])
    assert "answer_accuracy" not in model.train()(samples).report
    assert "answer_accuracy" in model.eval()(samples).report
