"""A run's config: the model type's defaults, the data set's, the YAML and ``--options``, merged."""

import importlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavis_ext.config.typed import typed
from lavis_ext.door import LavisConfig, registry
from lavis_ext.errors import UserError, nearest

SECTIONS = ("model", "datasets", "run", "imports")


class Config(LavisConfig):
    """LAVIS's config, typed and checked as a whole before anything is built.

    Later sources win: the defaults of ``model.model_type``, of each data set's ``type``, the YAML,
    the options. A YAML may list modules in ``imports``; they are imported first, which is how
    classes from outside this package get into the registry.

    Attributes:
        run, model: the typed sections, owned by the runner's and the model's class.
        datasets: the typed sections by data set.
        config: all of them as one OmegaConf tree; ``run_cfg``, ``model_cfg`` and ``datasets_cfg``
            read it, as in LAVIS.
    """

    def __init__(self, args: Namespace) -> None:
        """``args`` has ``cfg_path`` and ``options`` (a list of KEY=VALUE), as in LAVIS."""
        self.args = args
        given = merge(load_yaml(Path(args.cfg_path)), parse_options(args.options or []))
        _refuse_unknown_sections(given, args.cfg_path)
        _import_modules(given.get("imports") or [])
        merged = _with_defaults(given)
        try:
            OmegaConf.resolve(merged)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{args.cfg_path}: {reason} ({error.full_key!s}).") from None
        self.run: Any = typed(
            registry.get_runner_class(merged.run.get("runner", "fusion_runner")).Config,
            merged.run,
            "run",
        )
        self.model: Any = typed(
            registry.get_model_class(merged.model.arch).Config, merged.model, "model"
        )
        self.datasets: dict[str, Any] = {
            name: typed(registry.get_builder_class(name).Config, section, f"datasets.{name}")
            for name, section in merged.datasets.items()
        }
        self.config = OmegaConf.create(
            {
                "model": OmegaConf.structured(self.model),
                "datasets": {n: OmegaConf.structured(s) for n, s in self.datasets.items()},
                "run": OmegaConf.structured(self.run),
                "imports": list(given.get("imports") or []),
            }
        )
        registry.get_task_class(self.run.task)
        registry.get_lr_scheduler_class(self.run.lr_sched)
        registry.register("configuration", self)


def load_yaml(path: Path) -> DictConfig:
    """A YAML file as a mapping. Raises UserError naming the file, and the line that isn't YAML."""
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"{path}: the config can't be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it isn't text"
        raise UserError(f"{path}: not a YAML file{where} ({problem}).") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: not a config ({str(error).splitlines()[0]}).") from None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{path}: no config; it must have the sections model, datasets and run.")
    return config


def merge(defaults: DictConfig, given: DictConfig) -> DictConfig:
    """``defaults`` with what is ``given`` in place of theirs."""
    merged = OmegaConf.merge(defaults, given)
    assert isinstance(merged, DictConfig)
    return merged


def parse_options(options: Sequence[str]) -> DictConfig:
    """``KEY=VALUE`` or LAVIS's ``KEY VALUE`` pairs as a config tree."""
    if options and "=" not in options[0]:
        if len(options) % 2:
            raise UserError(f"--options: '{options[-1]}' has no value; write KEY=VALUE.")
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    for entry in options:
        if not entry.partition("=")[0].strip() or "=" not in entry:
            raise UserError(f"--options: '{entry}' isn't of the form KEY=VALUE.")
    try:
        return OmegaConf.from_dotlist(list(options))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"--options: {str(error).splitlines()[0]}.") from None


def _refuse_unknown_sections(given: DictConfig, path: str) -> None:
    for section in given:
        if section not in SECTIONS:
            hint = nearest(str(section), SECTIONS) or f" There are: {', '.join(SECTIONS)}."
            raise UserError(f"{path}: there is no section '{section!s}'.{hint}")
    for section in ("model", "datasets", "run"):
        if not OmegaConf.is_dict(given.get(section)):
            raise UserError(f"{path}: the section '{section}' is missing, or isn't a mapping.")
    if not given.model.get("arch"):
        raise UserError(f"{path}: model.arch is missing; it names a model of the registry.")


def _import_modules(names: Sequence[str]) -> None:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"imports: the module '{name}' can't be imported ({error}).") from None


def _with_defaults(given: DictConfig) -> DictConfig:
    model_class = registry.get_model_class(given.model.arch)
    defaults = OmegaConf.create({"model": model_class.default_section(given.model)})
    for name, section in given.datasets.items():
        builder_class = registry.get_builder_class(name)
        kind = (section or {}).get("type") or "balanced"
        defaults = merge(defaults, load_yaml(Path(builder_class.default_config_path(kind))))
    return merge(defaults, given)
