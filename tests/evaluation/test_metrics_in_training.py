"""GQA's metrics in validations and evaluations: computed, selected by, or missing with a reason."""

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
from lavis_ext.evaluation.gqa.__main__ import main as score_command
from lavis_ext.evaluation.gqa.predictions import write_predictions
from lavis_ext.runners.launch import started
from lavis_ext.tasks.gqa import GqaReadingComprehensionFusionTask
from tests.runners.test_runner import TINY_MODEL

pytestmark = pytest.mark.beyond_core

SPLITS = ["train", "val", "testdev"]
ALL = "datasets.gqa_fusion.subset=all"
UNSAMPLED = ["run.small_val_size=9999", "run.small_test_size=9999"]
FAST = ["run.max_steps=1", "task.resamples=100", "task.report_examples=4"]

Configured = Callable[..., Config]


@pytest.fixture
def config(configured: Configured, tiny_options: list[str]) -> Configured:
    return lambda *options: configured(*tiny_options, *TINY_MODEL, *FAST, *options)


def logged(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["kind"] == kind]


def test_the_metrics_are_those_that_the_command_gives_the_predictions_of_the_run(
    config: Configured, mini_gqa: Path, tmp_path: Path
) -> None:
    with started(config(ALL, *UNSAMPLED, "run.seed=1"), SPLITS) as runner:
        metrics = runner.train()["testdev"]
    folder = runner.output_dir
    score_command(
        [
            *("--questions", str(mini_gqa / "questions" / "testdev_all_questions.json")),
            *("--choices", str(mini_gqa / "choices" / "testdev_choices.json")),
            *("--predictions", str(folder / "testdev_predictions.json"), "--consistency"),
            *("--resamples", "100", "--seed", "1", "--json", str(tmp_path / "scores.json")),
        ]
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    ours = json.loads((folder / "testdev_scores.json").read_text())
    assert ours["metrics"] == scores["metrics"]
    assert ours["breakdowns"] == scores["breakdowns"]
    scored = scores["metrics"]
    assert {"consistency", "validity", "plausibility", "distribution"} <= scored.keys()
    for name in ("consistency", "validity", "plausibility", "distribution"):
        assert metrics[name] == scored[name]["value"]
    assert metrics["answer_accuracy"] == scored["accuracy"]["value"]
    assert metrics["answer_accuracy_open"] == scored["open"]["value"]
    assert "the answer head has no attention map" in ours["not_computed"]["grounding"]
    by_image = ByImage.read(folder / "testdev_by_image.json")
    assert by_image is not None
    assert {"answer_accuracy", "consistency", "validity"} <= by_image.sums.keys()
    for name, sums in by_image.sums.items():
        assert sums.sum() / by_image.counts[name].sum() == pytest.approx(metrics[name]), name


def test_validations_read_no_more_files_unless_asked_to(config: Configured) -> None:
    for options, there in (([], False), (["task.full_metrics=always"], True)):
        with started(config(*options), SPLITS) as runner:
            runner.train()
        first, last = logged(runner.output_dir, "val")
        assert ("validity" in first) == there
        assert "validity" in last
        assert "answer_accuracy_binary" in first


@pytest.mark.parametrize(
    ("metric", "options", "goal"),
    [
        ("validity", [], "max"),
        ("distribution", [], "min"),
        ("answer_accuracy_binary", [], "max"),
        ("consistency", [ALL, "run.small_val_size=9999"], "max"),
        ("itm_loss", [], "min"),
    ],
)
def test_any_metric_selects_in_its_own_direction(
    config: Configured, metric: str, options: list[str], goal: str
) -> None:
    with started(config(f"run.metric={metric}", *options), ["train", "val"]) as runner:
        assert runner.early_stopping.goal == goal
        metrics = runner.eval_epoch("val")
        assert metric in metrics


def test_the_direction_can_be_given(config: Configured) -> None:
    assert config("run.metric=loss", "run.metric_goal=max").run.metric_goal == "max"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["run.metric=consistency"],
            r"isn't computed on 'val': the questions that were answered don't include \d+",
        ),
        (["run.metric=grounding"], "the answer head has no attention map"),
        (["run.metric=validty"], "Did you mean 'validity'"),
        (["task.resamples=7"], r"task\.resamples is 7; it must be 0"),
    ],
)
def test_an_unavailable_metric_is_rejected_before_training(
    config: Configured, options: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message), started(config(*options), SPLITS):
        pass
    assert not (tmp_path / "output").exists()


def test_without_choices_their_metrics_have_a_reason_and_cannot_select(
    config: Configured, mini_gqa: Path, tmp_path: Path
) -> None:
    root = tmp_path / "gqa"
    root.mkdir()
    for name in ("questions", "images"):
        (root / name).symlink_to(mini_gqa / name)
    here = f"datasets.gqa_fusion.root={root}"
    with started(config(here), SPLITS) as runner:
        runner.train()
    text = (runner.output_dir / "log.txt").read_text()
    assert "not computed on testdev: validity, plausibility: there is no choices file" in text
    with (
        pytest.raises(UserError, match="'validity', which isn't computed on 'val': there is no ch"),
        started(config(here, "run.metric=validity"), SPLITS),
    ):
        pass
    choices = mini_gqa / "choices" / "val_choices.json"
    named = [here, f"datasets.gqa_fusion.choices.val={choices}", "run.metric=validity"]
    with started(config(*named), ["train", "val"]) as runner:
        assert "validity" in runner.eval_epoch("val")
    wrong = f"datasets.gqa_fusion.choices.val={tmp_path / 'none.json'}"
    with (
        pytest.raises(UserError, match=r"choices\.val: there is no file"),
        started(config(here, wrong), SPLITS),
    ):
        pass


def test_choices_of_another_split_are_a_reason_not_an_error(
    config: Configured, mini_gqa: Path
) -> None:
    other = mini_gqa / "choices" / "val_choices.json"
    cfg = config(
        f"datasets.gqa_fusion.choices.testdev={other}", "run.valid_splits=[]", "run.patience=null"
    )
    with started(cfg, ["train", "testdev"]) as runner:
        metrics = runner.train()["testdev"]
        scores = json.loads((runner.output_dir / "testdev_scores.json").read_text())
    assert "validity" not in metrics
    assert "no choices for" in scores["not_computed"]["validity"]


def test_grounding_of_heat_maps_is_that_of_the_command(
    configured: Configured, mini_gqa: Path, tmp_path: Path
) -> None:
    """Heat maps are kept row by row, the command's maps by column."""
    cfg = configured(
        "model.model_type=mini",
        "model.objectives.itm.weight=1",
        "model.fusion.name=grid_only",
        "model.captioner.sampling.num_captions=2",
        f"datasets.gqa_fusion.mini_gqa.root={mini_gqa}",
        "datasets.gqa_fusion.mini_gqa.images=40",
        "run.small_test_size=30",
        "task.resamples=0",
        "task.report_examples=7",
        cfg_path="projects/pnp-vqa/eval/mini_eval.yaml",
    )
    task = GqaReadingComprehensionFusionTask.setup_task(cfg)
    dataset = task.build_datasets(cfg, ["testdev"])["gqa_fusion"]["testdev"]
    model = task.build_model(cfg).eval()
    rows = np.arange(len(dataset))
    samples = dataset.__getitems__(BatchRows(rows, 0, len(rows)))
    maps = {}
    answer = model.answer

    def kept(samples: Any) -> Any:
        output = answer(samples)
        for name, heat in zip(samples["ids"], output.patch_heat, strict=True):
            by_column = heat.reshape(output.grid).T
            maps[name] = (by_column / by_column.sum()).double().tolist()
        return output

    model.answer = kept
    task.before_evaluation(model, dataset, final=True)
    evaluation = task.after_evaluation(
        task.evaluation(model, [samples], cuda_enabled=False), dataset, model
    )
    records = json.loads((mini_gqa / "questions" / "testdev_balanced_questions.json").read_text())
    asked = {name: records[name] for name in maps}
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    (tmp_path / "maps.json").write_text(
        json.dumps([{"questionId": name, "attention": each} for name, each in maps.items()])
    )
    write_predictions(tmp_path / "predictions.json", evaluation.predictions)
    names = {"questions": "questions", "predictions": "predictions", "attentions": "maps"}
    score_command(
        [
            *(f"--{option}={tmp_path / name}.json" for option, name in names.items()),
            f"--scenes={mini_gqa / 'sceneGraphs' / 'testdev_sceneGraphs.json'}",
            *("--json", str(tmp_path / "scores.json"), "--resamples", "0"),
        ]
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    expected = scores["metrics"]["grounding"]["value"]
    assert evaluation.metrics["grounding"] == pytest.approx(expected, rel=1e-5)
    assert evaluation.details is not None
    assert len(evaluation.details.shown) == len(evaluation.details.traces) == 7
    trace = next(iter(evaluation.details.traces.values()))
    assert trace.raw.max() == trace.refined.max() == 255
    assert max(trace.refined.shape) <= 32


def test_metrics_that_plain_records_cannot_have_are_left_out(
    config: Configured, mini_gqa: Path, tmp_path: Path
) -> None:
    given = []
    for split in SPLITS:
        source = mini_gqa / "questions" / f"{split}_balanced_questions.json"
        content = json.loads(source.read_text())
        path = tmp_path / f"{split}.json"
        plain = ("question", "imageId", "answer")
        path.write_text(json.dumps({n: {k: r[k] for k in plain} for n, r in content.items()}))
        given.append(f"datasets.gqa_fusion.questions.{split}={path}")
    with started(config(*given), SPLITS) as runner:
        metrics = runner.train()["testdev"]
    assert "answer_accuracy" in metrics
    text = (runner.output_dir / "log.txt").read_text()
    assert "not computed" not in text
    page = (runner.output_dir / "report.html").read_text(encoding="utf-8")
    assert "consistency" not in page
