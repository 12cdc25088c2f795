"""Build a runner from a program's arguments."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from lavis_ext import distributed
from lavis_ext.checkpoints.needs import Need, check_needs, needs_table
from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import LOSS
from lavis_ext.config.loader import Config
from lavis_ext.datasets.mixed import MixedDataset, split_of
from lavis_ext.distributed.sharding import uncalled_units_explained
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.models.base import TrainableModel
from lavis_ext.registry import registry
from lavis_ext.runners.config import RunConfig
from lavis_ext.runners.disk_budget import DiskBudget
from lavis_ext.runners.freezing import freeze_all_but, trained_parameters, trained_patterns
from lavis_ext.runners.memory import fit_memory
from lavis_ext.runners.optimizer import rates_and_decays
from lavis_ext.runners.plan import TRAINING, TrainingPlan
from lavis_ext.runners.resuming import expected_folder
from lavis_ext.runners.run_log import log, set_up_logging
from lavis_ext.runners.trainer import Trainer
from lavis_ext.tasks.base import Task


class _ArgumentParser(argparse.ArgumentParser):
    """Of several processes with the same arguments one shows the help or what is wrong."""

    def print_help(self, file: Any = None) -> None:
        if os.environ.get("RANK", "0") == "0":
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        with distributed.errors_once():
            raise UserError(f"{message}\n{self.format_usage().rstrip()}")
        raise AssertionError  # for type checkers, which take it that the block may go on


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Parser of the arguments that LAVIS's programs take."""
    parser = _ArgumentParser(
        description=description,
        epilog="python -m lavis_ext keys lists every key with its default and meaning, and "
        "python -m lavis_ext keys WORDS finds some.",
    )
    parser.add_argument("--cfg-path", required=True, help="YAML with model, datasets and run")
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        help="values that override the YAML's, such as run.max_epoch=3",
    )
    return parser


@dataclass(frozen=True)
class Prepared:
    """The parts of a run before it starts.

    Attributes:
        datasets: by role: ``train``, and each evaluated split, ``NAME.SPLIT`` in runs with several
            data sets.
        of_splits: the same with each data set's training split under its own name.
        needs: the files needed by the run and its evaluation, as they were listed.
    """

    task: Task
    datasets: dict[str, Any]
    of_splits: dict[str, Any]
    model: TrainableModel
    device: torch.device
    needs: Sequence[Need]


@contextmanager
def prepared(
    cfg: Config, splits: Sequence[str], *, load_weights: bool = True, names_folder: bool = False
) -> Iterator[Prepared]:
    """Context manager with a run's data and model, and a process group while it is open.

    With ``names_folder`` the first line of the log is the folder of the run. Without
    ``load_weights`` the weights are random, missing data sets are made up if their size is known,
    and nothing is downloaded.
    """
    with distributed.errors_once():
        device = distributed.choose_device(cfg.run.device)
    patience = cfg.run.process_group_timeout_minutes, cfg.run.watchdog_seconds
    with distributed.process_group(device, *patience):
        set_up_logging(None, quiet=not distributed.is_main_process())
        if names_folder:
            log.info("run: %s", expected_folder(cfg.run, stem(cfg), cfg.read_at))
        torch.manual_seed(cfg.run.seed)
        task = registry.get_task_class(cfg.run.task).setup_task(cfg=cfg)
        needs = distributed.from_main_process(lambda: _list_needs(cfg, task, splits))
        if load_weights:
            check_needs(needs, config=cfg.args.cfg_path)
        else:
            task.made_up = _made_up(cfg, splits, needs)
        of_splits = _by_split(task.build_datasets(cfg, list(splits)))
        for dataset in of_splits.values():
            dataset.faults = cfg.run.data_faults
        datasets = _by_role(of_splits, cfg.run)
        model = task.build_model(cfg, load_weights=load_weights)
        if TRAINING in datasets:
            # Before the optimizer and DDP are created: both read requires_grad once.
            freeze_all_but(model, trained_patterns(model, cfg.run.trainable))
            # Rejects wrong patterns before anything is written.
            rates_and_decays(list(trained_parameters(model)), cfg.run)
        _settle_metric(cfg, task, model, datasets)
        yield Prepared(task, datasets, of_splits, model, device, needs)


@contextmanager
def started(cfg: Config, splits: Sequence[str]) -> Iterator[Trainer]:
    """Context manager with a runner, its data and model, and a process group while it is open."""
    with prepared(cfg, splits, names_folder=True) as parts:
        _check_sizes(parts)
        features = None
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.of_splits, parts.model)
        if TRAINING in parts.datasets:
            if features:
                features.stand_in()
            fit_memory(cfg, parts, stem(cfg))
            distributed.from_main_process(lambda: _check_disk(cfg, parts))
        if features:
            features.use(parts.device, cfg.run.num_workers)
        runner = registry.get_runner_class(cfg.run.runner)(
            cfg=cfg,
            job_id=stem(cfg),
            task=parts.task,
            model=parts.model,
            datasets=parts.datasets,
        )
        try:
            with uncalled_units_explained():
                yield runner
        except BaseException:
            runner.close(failed=True)
            raise
        runner.close()


def stem(cfg: Config) -> str:
    """Prefix of the names of the config's runs."""
    return Path(cfg.args.cfg_path).stem


def _list_needs(cfg: Config, task: Task, splits: Sequence[str]) -> list[Need]:
    """Every file needed by the run and its evaluation, logged; to be sent to other processes."""
    needs = task.needs(cfg, splits)
    if needs:
        log.info("%s\n", needs_table(needs))
    return [replace(need, fetch=None) for need in needs]


def _made_up(cfg: Config, splits: Sequence[str], needs: Sequence[Need]) -> frozenset[str]:
    """Names of the data sets to make up. Raises UserError for missing ones of unknown size."""
    missing = [need for need in needs if need.missing and need.key.startswith("datasets.")]
    lacking = {need.key.split(".")[1] for need in missing}
    made_up = {
        name
        for name in lacking
        if registry.get_builder_class(name)(cfg.datasets[name]).make_up(splits)
    }
    unknown = [need for need in missing if need.key.split(".")[1] not in made_up]
    check_needs(unknown, config=cfg.args.cfg_path)
    return frozenset(made_up)


def _settle_metric(cfg: Config, task: Task, model: TrainableModel, datasets: Any) -> None:
    """Fill in ``run.metric``: the task's default, or the loss if the model lacks that metric."""
    if cfg.run.metric is None:
        cfg.run.metric = task.default_metric
        validated = [d for n, d in datasets.items() if split_of(n) in cfg.run.validation]
        if TRAINING in datasets and validated:
            reasons = task.not_computed(model, validated[0])
            known = {metric.name for metric in task.metrics(model)} - reasons.keys()
            if task.default_metric not in known and LOSS in known:
                cfg.run.metric = LOSS
                log.info(
                    "run.metric: this run has no %s; the lowest loss selects the best weights",
                    task.default_metric,
                )
    cfg.config.run.metric = cfg.run.metric


def _by_split(built: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Data sets by split, or by ``NAME.SPLIT`` where there are several."""
    if len(built) == 1:
        return dict(next(iter(built.values())))
    return {f"{name}.{split}": each for name, of in built.items() for split, each in of.items()}


def _by_role(of_splits: Mapping[str, Any], run: RunConfig) -> dict[str, Any]:
    """Data sets by role, the training set first."""
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
    budget.check(expected_folder(cfg.run, stem(cfg), cfg.read_at), parts.model.weights_name)
