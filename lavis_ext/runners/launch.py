"""From a program's arguments to a runner."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.mixed import MixedDataset, split_of
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.models.base import TrainableModel
from lavis_ext.registry import registry
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.disk_budget import DiskBudget
from lavis_ext.runners.freezing import freeze_all_but, trained_patterns
from lavis_ext.runners.plan import TRAINING, TrainingPlan
from lavis_ext.runners.resuming import expected_folder
from lavis_ext.runners.run_log import set_up_logging
from lavis_ext.runners.trainer import Trainer
from lavis_ext.tasks.base import Task


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that LAVIS's programs take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cfg-path", required=True, help="YAML with model, datasets and run")
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        help="values that win over the YAML's, such as run.max_epoch=3",
    )
    return parser


@dataclass(frozen=True)
class Prepared:
    """The parts of a run before it starts.

    Attributes:
        datasets: by what they are for: ``train``, and each split that is evaluated; of a run with
            several data sets the latter are ``NAME.SPLIT``.
        of_splits: the same with each data set's training split under its own name.
    """

    task: Task
    datasets: dict[str, Any]
    of_splits: dict[str, Any]
    model: TrainableModel
    device: torch.device


@contextmanager
def prepared(
    cfg: Config, splits: Sequence[str], *, load_weights: bool = True
) -> Iterator[Prepared]:
    """Data and model of a run, in a process group for the time of the block.

    Without ``load_weights`` the model is random, and none are fetched.
    """
    device = distributed.choose_device(cfg.run.device)
    patience = cfg.run.process_group_timeout_minutes, cfg.run.watchdog_seconds
    with distributed.process_group(device, *patience):
        set_up_logging(None, quiet=not distributed.is_main_process())
        torch.manual_seed(cfg.run.seed)
        task = registry.get_task_class(cfg.run.task).setup_task(cfg=cfg)
        of_splits = _by_split(task.build_datasets(cfg, list(splits)))
        for dataset in of_splits.values():
            dataset.faults = cfg.run.data_faults
        datasets = _by_role(of_splits, cfg.run)
        model = task.build_model(cfg, load_weights=load_weights)
        if TRAINING in datasets:
            # Before the optimizer and DDP exist, which take stock of what is trainable.
            freeze_all_but(model, trained_patterns(model, cfg.run.trainable))
        yield Prepared(task, datasets, of_splits, model, device)


@contextmanager
def started(cfg: Config, splits: Sequence[str]) -> Iterator[Trainer]:
    """A runner with its data and model, in a process group for the time of the block."""
    with prepared(cfg, splits) as parts:
        _check_sizes(parts)
        if TRAINING in parts.datasets:
            distributed.from_main_process(lambda: _check_disk(cfg, parts))
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.of_splits, parts.model)
            features.use(parts.device, cfg.run.num_workers)
        runner = registry.get_runner_class(cfg.run.runner)(
            cfg=cfg,
            job_id=stem(cfg),
            task=parts.task,
            model=parts.model,
            datasets=parts.datasets,
        )
        try:
            yield runner
        except BaseException:
            runner.close(failed=True)
            raise
        runner.close()


def stem(cfg: Config) -> str:
    """The first part of the names of the config's runs."""
    return Path(cfg.args.cfg_path).stem


def _by_split(built: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Data sets by split, or by ``NAME.SPLIT`` where there are several."""
    if len(built) == 1:
        return dict(next(iter(built.values())))
    return {f"{name}.{split}": each for name, of in built.items() for split, each in of.items()}


def _by_role(of_splits: Mapping[str, Any], run: RunConfig) -> dict[str, Any]:
    """The data sets by what they are for, the one that is trained on first."""
    training = {n: d for n, d in of_splits.items() if split_of(n) in run.training}
    others = {name: each for name, each in of_splits.items() if name not in training}
    if not training:
        return others
    if len(training) == 1:
        return {TRAINING: next(iter(training.values())), **others}
    names = [name.rpartition(".")[0] for name in training]
    return {TRAINING: MixedDataset(names, list(training.values())), **others}


def _check_sizes(parts: Prepared) -> None:
    for split, dataset in parts.of_splits.items():
        if len(dataset) < distributed.world_size():
            raise UserError(
                f"Split '{split}' has {len(dataset)} {dataset.noun} for "
                f"{distributed.world_size()} processes; start fewer, or use more of it "
                "(run.small_*_size)."
            )


def _check_disk(cfg: Config, parts: Prepared) -> None:
    budget = DiskBudget.of(parts.model, TrainingPlan.of(cfg.run, parts.datasets))
    budget.check(expected_folder(cfg.run, stem(cfg)), parts.model.weights_name)
