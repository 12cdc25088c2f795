"""From a program's arguments to a runner."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.files import room_in, size_in_words
from lavis_ext.config.loader import Config
from lavis_ext.features.run_features import RunFeatures
from lavis_ext.registry import registry
from lavis_ext.runners.costs import run_costs
from lavis_ext.runners.freezing import freeze_all_but, parts_table, train_mode
from lavis_ext.runners.plan import TrainingPlan
from lavis_ext.runners.resuming import expected_folder
from lavis_ext.runners.room import Room
from lavis_ext.runners.run_log import log, set_up_logging
from lavis_ext.runners.trainer import FusionRunner


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
    """What a run is made of, before it starts."""

    task: Any
    datasets: dict[str, Any]
    model: Any
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
        datasets = task.build_datasets(cfg, list(splits))
        for dataset in datasets.values():
            dataset.faults = cfg.run.data_faults
        model = task.build_model(cfg, load_weights=load_weights)
        if "train" in datasets:
            # Before the optimizer and DDP exist, which take stock of what is trainable.
            freeze_all_but(model, cfg.run.trainable)
        yield Prepared(task, datasets, model, device)


@contextmanager
def started(cfg: Config, splits: Sequence[str]) -> Iterator[FusionRunner]:
    """A runner with its data and model, in a process group for the time of the block."""
    with prepared(cfg, splits) as parts:
        _refuse_too_few_questions(parts)
        if "train" in parts.datasets:
            distributed.from_main_process(lambda: _refuse_too_little_room(cfg, parts))
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.datasets, parts.model)
            features.use(parts.device, cfg.run.num_workers)
        runner = registry.get_runner_class(cfg.run.runner)(
            cfg=cfg,
            job_id=_stem(cfg),
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


def _stem(cfg: Config) -> str:
    """What names of the config's runs begin with."""
    return Path(cfg.args.cfg_path).stem


def _refuse_too_few_questions(parts: Prepared) -> None:
    for split, dataset in parts.datasets.items():
        if len(dataset) < distributed.world_size():
            raise UserError(
                f"Split '{split}' has {len(dataset)} questions for {distributed.world_size()} "
                "processes; start fewer, or use more questions (run.small_*_size)."
            )


def _refuse_too_little_room(cfg: Config, parts: Prepared) -> None:
    folder = expected_folder(cfg.run, _stem(cfg))
    room = Room.of(parts.model, TrainingPlan.of(cfg.run, parts.datasets))
    room.refuse_too_little(folder, parts.model.weights_name)


def describe(cfg: Config, splits: Sequence[str]) -> None:
    """Log the resolved config, the plan of a training run, and what it will cost here.

    Entered by every process. A few steps are taken with random weights; no weights are fetched, and
    nothing is left of it.
    """
    with prepared(cfg, splits, load_weights=False) as parts:
        plan = TrainingPlan.of(cfg.run, parts.datasets)
        log.info("%s\n%s\n\n%s", OmegaConf.to_yaml(cfg.config), parts_table(parts.model), plan)
        room, folder = Room.of(parts.model, plan), expected_folder(cfg.run, _stem(cfg))
        log.info(
            "disk       %s for %s; %s are free in %s",
            size_in_words(room.needed),
            room,
            size_in_words(room_in(folder)),
            folder,
        )
        if cfg.run.features is not None:
            features = RunFeatures(cfg.run.features, parts.datasets, parts.model)
            log.info("features   %s", features.size())
            features.stand_in()
        with torch.device("meta"):
            model = parts.task.build_model(cfg, load_weights=False)
        freeze_all_but(model, cfg.run.trainable)
        train_mode(model)
        parts.model.to(parts.device)
        for line in run_costs(plan, parts, model):
            log.info(line)
