"""The shipped configs on tiny data in their formats, from training to a file of results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.samplers import BatchRows
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.runners.launch import started
from lavis_ext.tasks.vqa import VqaReadingComprehensionFusionTask
from tests.conftest import PROJECT
from tests.datasets.vqa.written import FORMATS, IMAGES, SAID, save
from tests.tiny import BLIP, EFFICIENT_SAM

Configured = Callable[..., Config]
TRAIN = PROJECT / "projects" / "vqa" / "train"
TINY = [
    "model.model_type=mini",
    *(f"model.streams.grid.{k}={v}" for k, v in BLIP.items() if k != "weights"),
    *(f"model.streams.segmentation.{k}={v}" for k, v in EFFICIENT_SAM.items() if k != "weights"),
    "model.streams.grid.weights=null",
    "model.streams.segmentation.weights=null",
    "model.fusion.d_model=32",
    "model.fusion.dropout=0",
    "model.objectives.answer.width=32",
    "model.objectives.answer.heads=2",
    "model.objectives.answer.layers=1",
    "model.objectives.answer.vocabulary_min_count=1",
    "run.max_steps=2",
    "run.max_epoch=2",
    "run.warmup_steps=0",
    "run.batch_size_train=8",
    "run.accum_grad_iters=1",
    "run.num_workers=0",
    "run.device=cpu",
    "run.amp=false",
    "task.resamples=100",
]


def options(name: str, root: Path) -> list[str]:
    return [*TINY, f"datasets.{name}.root={root}", f"run.output_dir={root / 'output'}"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_shipped_config_trains_scores_and_writes_results(
    name: str, tmp_path: Path, configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    FORMATS[name](tmp_path)
    test_split = {"vqav2": "testdev", "okvqa": None}.get(name, "test")
    tests = f"run.test_splits=[{test_split or ''}]"
    config = configured(*options(name, tmp_path), tests, cfg_path=TRAIN / f"{name}_train.yaml")
    splits = ["train", "val", *([test_split] if test_split else [])]
    with started(config, splits) as runner:
        metrics = runner.train()
    assert 0 <= metrics["val"]["vqa_accuracy"] <= 1
    typed = {"vqa_accuracy_yes_no", "vqa_accuracy_other"}
    assert typed <= metrics["val"].keys() or name == "aokvqa"
    assert "vqa_accuracy_number" not in metrics["val"]
    assert metrics["val"]["answers_outside_vocabulary"] == 0
    printed = capsys.readouterr().out
    assert "0 of 12 training answers (0.0 %) are outside" in printed
    assert "not computed" not in printed
    folder = runner.output_dir
    results = json.loads((folder / "val_predictions.json").read_text())
    assert len(results) == 2 * IMAGES
    by_image = ByImage.read(folder / "val_by_image.json")
    assert by_image is not None
    (sums,), (counts,) = by_image.sums.values(), by_image.counts.values()
    assert sums.sum() / counts.sum() == pytest.approx(metrics["val"]["vqa_accuracy"])
    known = {SAID[0][0], SAID[1][0]}
    if name == "aokvqa":
        assert {each["direct_answer"] for each in results.values()} <= known
        scored = json.loads((folder / "val_scores.json").read_text())
        assert scored["questions"] == 2 * IMAGES - 1, "all but the difficult one"
    else:
        key = "image" if name == "vizwiz" else "question_id"
        assert all(each.keys() == {key, "answer"} for each in results)
        assert {each["answer"] for each in results} <= known
        if key == "question_id":
            assert all(isinstance(each[key], int) for each in results)
    if test_split:
        assert "vqa_accuracy" not in metrics[test_split]
        assert metrics[test_split]["answers_outside_vocabulary"] == 0
        assert len(json.loads((folder / f"{test_split}_predictions.json").read_text())) == 12
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "vqa_accuracy" in page
    assert "red (6), crimson (3), a red (1)" in page or name == "aokvqa"


def several(tmp_path: Path, names: list[str]) -> Path:
    """A config of several data sets, made from a shipped one."""
    text = (TRAIN / f"{names[0]}_train.yaml").read_text()
    for name in names[1:]:
        text = text.replace("\nrun:\n", f"\n  {name}:\n    root: {tmp_path / name}\n\nrun:\n")
    path = tmp_path / "several.yaml"
    path.write_text(text)
    return path


def test_several_data_sets_share_a_vocabulary_and_keep_their_rules(
    tmp_path: Path, configured: Configured
) -> None:
    for name in ("vqav2", "vizwiz"):
        FORMATS[name](tmp_path / name)
    path = tmp_path / "vizwiz" / "Annotations" / "train.json"
    content = json.loads(path.read_text())
    for each in content[:4]:
        each["answers"] = [{"answer": "unsuitable"}] * 10
    save(path, content)
    config = configured(
        *options("vqav2", tmp_path / "vqav2"), cfg_path=several(tmp_path, ["vqav2", "vizwiz"])
    )
    with started(config, ["train", "val"]) as runner:
        metrics = runner.train()
    assert metrics.keys() == {"vqav2.val", "vizwiz.val"}
    assert set(runner.model.vocabulary.answers) == {"red", "yes", "unsuitable"}
    own = json.loads((runner.output_dir / "vizwiz.val_predictions.json").read_text())
    assert all(each.keys() == {"image", "answer"} for each in own)


def changed_answers(root: Path, split: str, answers: list[str]) -> None:
    path = root / f"aokvqa_v1p0_{split}.json"
    content: list[dict[str, Any]] = json.loads(path.read_text())
    for each in content:
        each["direct_answers"] = answers
    save(path, content)


def test_answers_that_are_all_unknown_or_missing_are_errors(
    tmp_path: Path, configured: Configured
) -> None:
    FORMATS["aokvqa"](tmp_path)
    make = lambda *more: configured(  # noqa: E731
        *options("aokvqa", tmp_path), *more, cfg_path=TRAIN / "aokvqa_train.yaml"
    )
    changed_answers(tmp_path, "val", ["zebra"] * 10)
    with (
        pytest.raises(UserError, match=r"datasets.aokvqa: none of the 12 answers of split 'val'"),
        started(make(), ["train", "val"]),
    ):
        pass
    with (
        pytest.raises(UserError, match="No training answer occurs 7 times"),
        started(make("model.objectives.answer.vocabulary_min_count=7"), ["train", "val"]),
    ):
        pass
    train = tmp_path / "aokvqa_v1p0_train.json"
    train.write_text((tmp_path / "aokvqa_v1p0_test.json").read_text())
    pictures = tmp_path / "images"
    (pictures / "test2017").rename(pictures / "gone")
    with (
        pytest.raises(UserError, match="none of its 12 training questions has an answer"),
        started(make(), ["train", "val"]),
    ):
        pass


def test_the_pipeline_answers_are_scored_too(tmp_path: Path, configured: Configured) -> None:
    FORMATS["okvqa"](tmp_path)
    text = (PROJECT / "projects" / "pnp-vqa" / "eval" / "mini_eval.yaml").read_text()
    config = tmp_path / "eval.yaml"
    config.write_text(
        text.replace("  gqa_fusion:\n    type: mini", f"  okvqa:\n    root: {tmp_path}").replace(
            "gqa_reading", "vqa_reading"
        )
    )
    cfg = configured(
        "model.model_type=mini",
        "model.objectives.itm.weight=1",
        "model.fusion.name=grid_only",
        "model.captioner.sampling.num_captions=2",
        "task.resamples=100",
        cfg_path=config,
    )
    task = VqaReadingComprehensionFusionTask.setup_task(cfg)
    dataset = task.build_datasets(cfg, ["val"])["okvqa"]["val"]
    model = task.build_model(cfg).eval()
    rows = np.arange(len(dataset))
    samples = dataset.__getitems__(BatchRows(rows, 0, len(rows)))
    task.before_evaluation(model, dataset, final=True)
    evaluation = task.after_evaluation(task.evaluation(model, [samples]), dataset, model)
    assert evaluation.predictions.keys() == set(samples["ids"])
    assert {"vqa_accuracy", "vqa_accuracy_other", "captions"} <= evaluation.metrics.keys()
    assert evaluation.metrics.keys() <= {metric.name for metric in task.metrics(model)}
