"""Unit tests of the parts of a run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.samplers import TrainBatches
from lavis_ext.registry import registry
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.freezing import freeze_all_but, parts_table, train_mode, trained_patterns
from lavis_ext.runners.optimizer import WarmupCosineLRScheduler
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.progress import EarlyStopping, Progress, duration
from lavis_ext.runners.run_folder import git_revision
from lavis_ext.runners.trainer import _waiting_advice
from tests.tiny import HEAD, make_model


def test_early_stopping_counts_validations_without_gain() -> None:
    stopping = EarlyStopping("max", patience=2)
    assert [stopping.update(value) for value in (0.1, 0.3, 0.3, 0.4, 0.2)] == [
        *(True, True, False, True, False),
    ]
    assert not stopping.should_stop
    assert not stopping.update(0.39)
    assert stopping.should_stop
    assert stopping.best == 0.4


def test_early_stopping_supports_metrics_at_or_below_zero_and_lower_is_better() -> None:
    """docs/traps.md, 13: LAVIS needs a metric above 0."""
    stopping = EarlyStopping("min")
    assert [stopping.update(value) for value in (0.0, -1.0, -0.5)] == [True, True, False]
    assert EarlyStopping("max").update(-5.0)


def test_an_improvement_exceeds_the_minimum_and_is_never_nan() -> None:
    stopping = EarlyStopping("max", patience=9, min_gain=0.1)
    assert not stopping.update(float("nan"))
    assert [stopping.update(value) for value in (0.5, 0.55, 0.6, 0.601, float("nan"))] == [
        *(True, False, False, True, False),
    ]


def test_only_matching_parameters_are_trained() -> None:
    model = make_model({"head": HEAD})
    freeze_all_but(model, trained_patterns(model, ["fusion.heads.*", "blip.blip.itm_head.bias"]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "streams.grid.blip.itm_head.bias" in trained
    assert {name.split(".")[0] for name in trained} == {"streams", "objectives"}
    assert not any(name.startswith("fusion.encoder") for name in trained)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["fuson.*"], r"no parameter matches 'fuson.\*'. Did you mean 'fusion.\*'"),
        ([], "leaves nothing to train"),
    ],
)
def test_patterns_that_train_nothing_are_errors(patterns: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        freeze_all_but(make_model({"itm": None}), patterns)


def test_frozen_modules_stay_in_eval_mode_with_their_dropout() -> None:
    """docs/traps.md, 7."""
    model = nn.ModuleDict(
        {
            "frozen": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
            "fusion": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
        }
    )
    freeze_all_but(model, ["fusion.*"])
    train_mode(model)
    assert [module.training for module in model["frozen"].modules()] == [False] * 3
    assert [module.training for module in model["fusion"].modules()] == [True] * 3


def test_the_parts_table_counts_every_parameter_once() -> None:
    model = make_model({"answer": HEAD})
    freeze_all_but(model, ["fusion.*", "objectives.*"])
    rows = [line.split() for line in str(parts_table(model)).splitlines()[1:]]
    counts = {name: (int(n.replace(",", "")), int(t.replace(",", ""))) for name, n, t in rows}
    total = counts.pop("total")
    assert total[0] == sum(p.numel() for p in model.parameters())
    assert tuple(map(sum, zip(*counts.values(), strict=True))) == total
    assert counts["streams.grid"][1] == 0
    assert counts["objectives.answer"][0] == counts["objectives.answer"][1] > 0


def test_warm_up_is_linear_and_the_cosine_ends_at_the_minimum() -> None:
    schedule = WarmupCosineLRScheduler(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        max_steps=110,
        init_lr=1.0,
        min_lr=0.1,
        warmup_steps=10,
        warmup_start_lr=0.0,
        max_epoch=1,
    )
    assert [schedule.rate(step) for step in (0, 5, 10)] == pytest.approx([0.0, 0.5, 1.0])
    assert schedule.rate(60) == pytest.approx(0.55)
    assert schedule.rate(110) == pytest.approx(0.1)
    assert schedule.rate(200) == pytest.approx(0.1)
    schedule.step(cur_epoch=3, cur_step=60)
    assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(0.55)


@pytest.mark.parametrize("name", registry.list_lr_schedulers())
def test_every_registered_schedule_can_be_built_as_the_runner_builds_it(name: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = registry.get_lr_scheduler_class(name)(
        optimizer=optimizer,
        max_steps=10,
        max_epoch=2,
        init_lr=1.0,
        min_lr=0.0,
        decay_rate=0.5,
        warmup_steps=2,
        warmup_start_lr=0.0,
    )
    schedule.step(cur_epoch=0, cur_step=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_the_time_left_is_that_of_the_whole_run() -> None:
    """docs/traps.md, 14: LAVIS's was the epoch's."""
    now = [0.0]
    progress = Progress(total_steps=100, total_validations=4, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 2.0
        progress.step()
    assert progress.seconds_left == pytest.approx(90 * 2)
    assert progress.window(40).rate == pytest.approx(2.0)
    assert progress.time_left == "3 min 00 s left, plus evaluations"
    progress.begin_validation()
    now[0] += 30.0
    assert progress.seconds_left == pytest.approx(90 * 2), "during the validation too"
    progress.validated(30.0)
    assert progress.seconds_left == pytest.approx(90 * 2 + 3 * 30)
    assert progress.time_left == "4 min 30 s left"
    now[0] += 2.0
    progress.step()
    rate = progress.window(4).rate
    assert rate == pytest.approx(2.0), "a validation is no part of the training rate"


def test_evaluations_count_by_their_examples_in_the_time_left() -> None:
    """The final evaluation of a large test split takes as long as several validations."""
    run = RunConfig(max_epoch=2, valid_splits=["val"], test_splits=["testdev"])
    batches = TrainBatches(np.arange(64), batch_size=16, examples_per_image=1, seed=0)
    examples = {"train": 64, "val": 10, "testdev": 40}
    plan = TrainingPlan(run, examples, examples, batches)
    assert plan.validations == 4
    assert plan.validations_worth == 3 + 4
    alone = replace(plan, run=replace(run, valid_splits=[]))
    assert alone.validations_worth == 1


def test_more_workers_are_advised_only_up_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert "Increase run.num_workers (now 1, with 4 cores)" in _waiting_advice(0.5, 1)
    assert "Increase" not in _waiting_advice(0.5, 4)
    assert "store smaller images" in _waiting_advice(0.5, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "Increase" not in _waiting_advice(0.5, 1)


def test_waiting_time_is_distinguished_from_step_time() -> None:
    now = [0.0]
    progress = Progress(total_steps=9, total_validations=0, clock=lambda: now[0])

    shares = []
    for _ in range(5):
        now[0] += 3.0
        progress.waited(3.0)
        now[0] += 1.0
        progress.step()
        shares.append(progress.window(8).waiting)
    # The workers' start, before the first step, doesn't count.
    assert shares == pytest.approx([0.0, 0.75, 0.75, 0.75, 0.75])


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (4.4, 70, 3900)] == ["4 s", "1 min 10 s", "1 h 05 min"]


def test_the_git_revision_is_recorded_where_there_is_one() -> None:
    revision = git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40


def test_cuda_without_a_device_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA device"):
        distributed.choose_device("cuda")
    assert distributed.choose_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.metric=f1", "this run's validations compute"),
        ("run.metric=itm_accuracy", "this run's validations compute"),
    ],
)
def test_a_metric_missing_from_validations_is_rejected_before_training(
    configured: Callable[..., Config], tiny_options: list[str], option: str, message: str
) -> None:
    from lavis_ext.runners.launch import started

    with (
        pytest.raises(UserError, match=message),
        started(configured(*tiny_options, option), ["train", "val", "testdev"]),
    ):
        pass


def test_reports_have_the_metrics_declared_by_their_objective() -> None:
    from tests.tiny import make_samples

    objectives: dict[str, Any] = {"itm": {}, "head": HEAD, "answer": HEAD}
    model = make_model(objectives)
    assert set(model(make_samples()).report) == {metric.name for metric in model.metrics}
