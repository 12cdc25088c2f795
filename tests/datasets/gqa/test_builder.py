"""The GQA builder: sizes, missing images, workers and processors."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from lavis_ext.common.errors import UserError
from lavis_ext.datasets.base import DataFault, to_device
from lavis_ext.datasets.faults import DataFaultsConfig
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.loader import Loader
from lavis_ext.datasets.questions.dataset import QuestionBatch
from lavis_ext.datasets.samplers import BatchRows, EvalBatches, TrainBatches
from lavis_ext.datasets.samples import EXAMPLES, SampleSize
from lavis_ext.processors.image import StreamImagesConfig, StreamImagesProcessor
from lavis_ext.processors.text import QuestionConfig, QuestionProcessor
from lavis_ext.registry import registry


def builder(root: Path, **options: Any) -> GqaFusionBuilder:
    small = {"name": "stream_images", "sizes": {"grid": 32, "segmentation": 24}}
    given = {"root": str(root), "vis_processor": {"train": small, "eval": small}, **options}
    return GqaFusionBuilder(OmegaConf.create(given))


@pytest.fixture
def copied(mini_gqa: Path, tmp_path: Path) -> Path:
    """A copy of mini-GQA that a test may damage."""
    shutil.copytree(mini_gqa, tmp_path / "gqa")
    return tmp_path / "gqa"


@pytest.fixture(scope="module")
def train(mini_gqa: Path) -> GqaFusionDataset:
    return builder(mini_gqa, mismatched={"per_question": 2}).build_datasets({"train": None})[
        "train"
    ]


def test_all_splits_are_built_with_their_own_questions(mini_gqa: Path) -> None:
    datasets = builder(mini_gqa).build_datasets()
    assert list(datasets) == ["train", "val", "testdev"]
    for split, dataset in datasets.items():
        file = mini_gqa / "questions" / f"{split}_balanced_questions.json"
        ids = dataset.table.columns["question_id"].to_pylist()
        assert ids == list(json.loads(file.read_text()))


def test_subset_all_reads_the_other_files(mini_gqa: Path) -> None:
    balanced = builder(mini_gqa).read_split("val")
    everything = builder(mini_gqa, subset="all")
    assert len(everything.read_split("val")) > len(balanced)
    assert everything.read_split("val") is everything.read_split("val"), "files are read once"


def test_question_files_can_be_named_by_split(mini_gqa: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    shutil.copy(mini_gqa / "questions" / "val_balanced_questions.json", file)
    assert len(builder(mini_gqa, questions={"testdev": str(file)}).read_split("testdev")) == len(
        builder(mini_gqa).read_split("val")
    )
    misspelt = builder(mini_gqa, questions={"tesdev": str(file)})
    with pytest.raises(UserError, match=r"questions\.tesdev: .*Did you mean 'testdev'\?"):
        misspelt.build_datasets({"train": None, "val": None})
    own_split = builder(mini_gqa, questions={"kitchens": str(file)})
    assert len(own_split.build_datasets({"kitchens": None})["kitchens"]) > 0


def test_builder_and_processors_work_alone_with_their_defaults() -> None:
    for given, root in ((None, "data/gqa"), ({"type": "mini"}, "data/mini_gqa")):
        config = registry.get_builder_class("gqa_fusion")(given).config
        assert config.root == root
        assert config.vis_processor.train == StreamImagesConfig()
    assert StreamImagesProcessor.from_config().config == StreamImagesConfig()
    assert QuestionProcessor.from_config().config == QuestionConfig()


def test_sizes_are_seeded_samples(mini_gqa: Path) -> None:
    def ids(size: SampleSize | float | None, seed: int) -> list[str]:
        table = builder(mini_gqa).build_datasets({"train": size}, seed=seed)["train"].table
        found: list[str] = table.columns["question_id"].to_pylist()
        return found

    everything = ids(None, 0)
    by_example = SampleSize(50, EXAMPLES)
    assert len(ids(by_example, 0)) == 50
    for size in (50, 0.3, by_example):
        assert ids(size, 0) == ids(size, 0) != ids(size, 1)
        assert {*ids(size, 0)} < {*everything}
        assert max(everything.index(each) for each in ids(size, 0)) > 0.5 * len(everything)


def test_a_sample_takes_whole_images(mini_gqa: Path) -> None:
    """50 single questions would need 50 images, which are most of a step's cost."""
    whole = builder(mini_gqa).build_datasets({"train": None})["train"]
    of_image = Counter(whole.image_ids(np.arange(len(whole))))

    def images(size: Any) -> Counter[str]:
        dataset = builder(mini_gqa).build_datasets({"train": size})["train"]
        return Counter(dataset.image_ids(np.arange(len(dataset))))

    sampled = images(50)
    assert all(of_image[image] == count for image, count in sampled.items())
    assert 50 <= sampled.total() < 50 + max(of_image.values())
    assert len(images(0.5)) == round(len(of_image) / 2)
    assert images(1.0) == images(10**6) == of_image
    assert len(images(1)) == 2  # one image's questions are the other's mismatched ones


def test_small_train_size_limits_every_split_without_its_own_size(
    configured: Callable[..., Any],
) -> None:
    splits = ["train", "val", "testdev"]

    def sizes(*options: str) -> list[SampleSize | None]:
        return list(configured(*options).run.sizes(splits).values())

    assert sizes() == [None, None, None]
    assert sizes("run.small_train_size=50") == [SampleSize(50)] * 3
    assert sizes("run.small_train_size=0.5") == [SampleSize(0.5)] * 3
    (whole, *_) = sizes("run.small_train_size=1.0")
    assert whole is not None
    assert isinstance(whole.amount, float), "1.0 is all of the images, 1 is one example"
    assert sizes("run.small_val_size=20") == [None, SampleSize(20), None]
    three = [
        f"run.small_{role}_size={size}"
        for role, size in zip(("train", "val", "test"), (5, 6, 7), strict=True)
    ]
    assert sizes(*three) == [SampleSize(5), SampleSize(6), SampleSize(7)]
    by_example = sizes("run.small_val_size=20", "run.sample_by=examples")
    assert by_example == [None, SampleSize(20, EXAMPLES), None]


def test_missing_images_are_counted_and_named_before_training(copied: Path) -> None:
    images = sorted(builder(copied).read_split("val").columns["image_id"].unique().to_pylist())
    (copied / "images" / f"{images[0]}.jpg").unlink()
    with pytest.raises(UserError) as caught:
        builder(copied).build_datasets()
    message = str(caught.value)
    assert f"1 of the {len(images)} images that split 'val' uses is missing" in message
    assert images[0] in message
    assert "missing_images_limit" in message


def test_allowed_missing_images_take_their_questions_with_them(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = builder(copied).read_split("train").columns
    gone = sorted(columns["image_id"].unique().to_pylist())[:5]
    for image in gone:
        (copied / "images" / f"{image}.jpg").unlink()
    lost = sum(image in gone for image in columns["image_id"].to_pylist())
    with caplog.at_level(logging.WARNING):
        dataset = builder(copied, missing_images_limit=0.2).build_datasets({"train": None})["train"]
    assert len(dataset) == len(columns) - lost
    assert not {*gone} & {*dataset.table.columns["image_id"].to_pylist()}
    assert "5 of the 32 images" in caplog.text
    assert f"{', '.join(gone[:3])}, ..." in caplog.text
    assert f"{lost} questions are left out" in caplog.text
    with pytest.raises(UserError, match="5 of the 32 images"):
        builder(copied, missing_images_limit=0.1).build_datasets({"train": None})


def test_all_images_missing_is_an_error_for_any_limit(copied: Path) -> None:
    for image in (copied / "images").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"32 of the 32 images.*gqa_fusion\.images\."):
        builder(copied, missing_images_limit=1.0).build_datasets({"train": None})
    shutil.rmtree(copied / "images")
    with pytest.raises(UserError, match=r"no such image folder.*datasets\.gqa_fusion\.images"):
        builder(copied).build_datasets({"train": None})


def test_a_missing_root_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"datasets\.gqa_fusion\.root: there is no folder"):
        builder(tmp_path / "gone").build_datasets({"train": None})


def batch_of(dataset: GqaFusionDataset, rows: list[int], epoch: int = 0) -> QuestionBatch:
    samples = dataset.__getitems__(BatchRows(np.array(rows), epoch, global_size=99))
    assert not isinstance(samples, DataFault)
    return samples


def test_a_batch_has_each_image_once_with_indices_into_it(train: GqaFusionDataset) -> None:
    rows = [30, 0, 1, 31, 2, 60]
    samples = batch_of(train, rows)
    images = [train.table.text("image_id", row) for row in rows]
    assert len(samples["images"]["grid"]) == len({*images}) < len(rows)
    assert samples["images"]["grid"].shape[1:] == (3, 32, 32)
    assert samples["images"]["segmentation"].shape[1:] == (3, 24, 24)
    assert samples["images"]["grid"].dtype == torch.uint8
    assert samples["image_index"].dtype == torch.int64
    for place, image in enumerate(images):
        alone = train.processor(train.images.read(str(image)))
        mine = samples["image_index"][place]
        assert torch.equal(samples["images"]["grid"][mine], alone["grid"])
        assert torch.equal(samples["images"]["segmentation"][mine], alone["segmentation"])
    assert samples["ids"] == [train.table.text("question_id", row) for row in rows]
    assert samples["answer"] == [train.table.text("answer", row) for row in rows]
    assert samples["global_size"] == 99


def test_mismatched_questions_are_grouped_by_their_question(train: GqaFusionDataset) -> None:
    assert train.mismatched is not None
    rows = [30, 0, 31]
    samples = batch_of(train, rows, epoch=3)
    assert len(samples["mismatched_input"]) == 6
    for place, row in enumerate(rows):
        drawn = [train.table.text("question", other) for other in train.mismatched.draw(row, 3)]
        mine = samples["mismatched_input"][2 * place : 2 * place + 2]
        assert mine == [train.text_processor(str(text)) for text in drawn]
        alone = batch_of(train, [row], epoch=3)
        assert alone["mismatched_input"] == mine


def test_without_mismatched_questions_batches_have_none(mini_gqa: Path) -> None:
    dataset = builder(mini_gqa).build_datasets({"val": None}, with_mismatched=False)["val"]
    assert batch_of(dataset, [0, 1])["mismatched_input"] == []
    assert dataset[1]["ids"] == [dataset.table.text("question_id", 1)]


def test_a_loader_with_a_worker_gives_the_same_batches(train: GqaFusionDataset) -> None:
    batches = TrainBatches(
        train.table.codes("image_id"), batch_size=40, examples_per_image=8, seed=1
    )
    inside = list(Loader(train, batches, 0, DataFaultsConfig()))
    outside = list(Loader(train, batches, 1, DataFaultsConfig()))
    assert len(inside) == len(outside) == len(batches)
    for one, other in zip(inside, outside, strict=True):
        assert one.keys() == other.keys()
        assert one["mismatched_input"] == other["mismatched_input"]
        assert torch.equal(
            one["images"]["grid"], to_device(other, torch.device("cpu"))["images"]["grid"]
        )
    assert sum(len(batch["text_input"]) for batch in inside) == len(train)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_reaches_the_user_without_a_worker_traceback(
    workers: int, copied: Path
) -> None:
    dataset = builder(copied).build_datasets({"val": None})["val"]
    file = dataset.images.path(str(dataset.table.text("image_id", 0)))
    file.write_bytes(file.read_bytes()[:700])
    batches = EvalBatches(dataset.table.codes("image_id"), batch_size=8)
    with pytest.raises(UserError) as caught:
        list(Loader(dataset, batches, workers, DataFaultsConfig()))
    assert str(caught.value).startswith(f"{file}: the image can't be read")
    assert "Traceback" not in str(caught.value)
    with pytest.raises(UserError, match="the image can't be read"):
        dataset[0]


def test_the_image_processor_keeps_the_whole_picture_unmirrored() -> None:
    picture = Image.new("RGB", (60, 20))
    picture.paste((255, 0, 0), (0, 0, 20, 20))
    picture.paste((0, 0, 255), (40, 0, 60, 20))
    config = StreamImagesConfig(sizes={"grid": 30, "segmentation": 15})
    images = StreamImagesProcessor(config)(picture)
    for name, side in (("grid", 30), ("segmentation", 15)):
        pixels = images[name]
        assert pixels.shape == (3, side, side)
        assert pixels[:, side // 2, 1].tolist() == [255, 0, 0]
        assert pixels[:, side // 2, -2].tolist() == [0, 0, 255]


def test_the_question_processor_lower_cases_collapses_spaces_and_cuts() -> None:
    processor = QuestionProcessor(QuestionConfig(max_words=3))
    assert processor("  What  COLOR\tis it? ") == "what color is"
