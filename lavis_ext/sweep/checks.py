"""Checks of a sweep's runs before the first one starts."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.registry import registry
from lavis_ext.sweep.grid import PlannedRun


def checked(cfg_path: str, options: Sequence[str], runs: Sequence[PlannedRun]) -> list[Config]:
    """Configs of all runs, typed and checked as by train.py.

    Raises UserError naming the run for a key or value that train.py refuses, and for two runs whose
    values mean the same.
    """
    configs: list[Config] = []
    resolved: list[Any] = []
    for run in runs:
        arguments = Namespace(cfg_path=cfg_path, options=[*options, *run.options])
        try:
            cfg = Config(arguments)
            registry.get_task_class(cfg.run.task).setup_task(cfg)
            distributed.choose_device(cfg.run.device)
        except UserError as error:
            raise UserError(f"{error} (run {run.name} of the sweep; nothing has started)") from None
        config = OmegaConf.to_container(cfg.config)
        if config in resolved:
            same = runs[resolved.index(config)]
            raise UserError(f"The runs {same.name} and {run.name} are the same; remove one value.")
        configs.append(cfg)
        resolved.append(config)
    return configs
