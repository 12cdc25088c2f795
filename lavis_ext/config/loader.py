"""A run's config: the model type's defaults, the data set's, the YAML and ``--options``, merged."""

import copy
import importlib
import io
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from lavis_ext.common.errors import UserError, nearest, shortened
from lavis_ext.config.renamed import OldKey, rename_old_keys
from lavis_ext.config.schema import changeable_keys
from lavis_ext.config.typed import A_MAPPING, MISFITS, look_up, schema_of, shown, typed
from lavis_ext.registry import LavisConfig, registry

SECTIONS = ("model", "datasets", "task", "run", "imports")
DEFAULT_RUNNER = "trainer"
MOST_VALUES = 10_000
"""Of a YAML file, with aliases written out; a run's config has some two hundred."""
MOST_LEVELS = 50
TOO_MUCH = f"more than {MOST_VALUES:,} values, or {MOST_LEVELS} levels of them"
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp", "value")
)


MISVALUED = (ValueError, LookupError, OverflowError)
"""What PyYAML raises for numbers, dates and texts that aren't any."""


class Config(LavisConfig):
    """LAVIS's config, typed and checked as a whole before anything is built.

    Later sources win: the defaults of ``model.model_type``, of each data set's ``type``, the YAML,
    the options. A YAML may list modules in ``imports``; they are imported first, which is how
    classes from outside this package get into the registry.

    Attributes:
        run, model, task: the typed sections, owned by the runner's, the model's and the task's
            class.
        datasets: the typed sections by data set.
        renamed: old keys that were given, with today's; for the log.
        config: all of them as one OmegaConf tree; ``run_cfg``, ``model_cfg`` and ``datasets_cfg``
            read it, as in LAVIS.
    """

    def __init__(self, args: Namespace) -> None:
        """``args`` has ``cfg_path`` and ``options`` (a list of KEY=VALUE), as in LAVIS."""
        self.args = args
        path = f"{args.cfg_path}{' with --options' if args.options else ''}"
        sources = load_yaml(Path(args.cfg_path)), parse_options(args.options or [])
        for source in sources:
            _refuse_unset(OmegaConf.to_container(source), path)
        given = merge(*sources)
        with _interpolations_named(path):
            _check_sections(given, path)
            plain = cast(dict[str, Any], OmegaConf.to_container(given))
            import_modules(plain.get("imports") or [])
            old_keys = old_keys_of(given)
            self.renamed: dict[str, str] = {}
            given = merge(*(self._renamed(source, old_keys) for source in sources))
            merged = _with_defaults(given)
            runner = merged.run.get("runner", DEFAULT_RUNNER)
            model = look_up("model", merged.model.arch, "model.arch")
            task_name = merged.run.get("task") or model.default_task
        # The model first: the other sections take values from it.
        self.model: Any = typed(
            schema_of("model", merged.model.arch, "model.arch"), merged.model, "model"
        )
        self.run: Any = typed(schema_of("runner", runner, "run.runner"), merged.run, "run")
        if task_name is None:
            raise UserError(f"{path}: run.task is missing; it names a task of the registry.")
        self.run.task = str(task_name)
        self.task: Any = typed(
            schema_of("task", self.run.task, "run.task"), merged.get("task") or {}, "task"
        )
        self.run.complete(look_up("task", self.run.task, "run.task"), "run")
        self.datasets: dict[str, Any] = {
            name: typed(schema_of("builder", name, f"datasets.{name}"), section, f"datasets.{name}")
            for name, section in merged.datasets.items()
        }
        self.config = OmegaConf.create(
            {
                "model": OmegaConf.structured(self.model),
                "datasets": {n: OmegaConf.structured(s) for n, s in self.datasets.items()},
                "task": OmegaConf.structured(self.task),
                "run": OmegaConf.structured(self.run),
                "imports": list(given.get("imports") or []),
            }
        )
        look_up("lr_scheduler", self.run.lr_sched, "run.lr_sched")
        registry.register("configuration", self)

    def changeable_keys(self) -> set[str]:
        """Keys and patterns of keys with which a saved run can go on changed."""
        found = changeable_keys(self.run, "run") | changeable_keys(self.task, "task")
        found |= changeable_keys(self.model, "model")
        for name, section in self.datasets.items():
            found |= changeable_keys(section, f"datasets.{name}")
        return found

    def upgraded(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A config that was saved by an earlier version, under today's names."""
        tree = copy.deepcopy(saved)
        rename_old_keys(tree, old_keys_of(OmegaConf.create(tree)))
        return tree

    def _renamed(self, source: DictConfig, old_keys: Sequence[OldKey]) -> DictConfig:
        tree: Any = OmegaConf.to_container(source)
        self.renamed |= rename_old_keys(tree, old_keys)
        return OmegaConf.create(tree)


def old_keys_of(given: DictConfig) -> list[OldKey]:
    """What the classes that a config names have renamed."""
    tree: Any = OmegaConf.to_container(given)
    run, model = tree.get("run") or {}, tree.get("model") or {}
    arch = look_up("model", model.get("arch"), "model.arch")
    found = [*registry.get_runner_class(DEFAULT_RUNNER).OLD_KEYS]
    task = run.get("task") or getattr(arch, "default_task", None)
    for kind, names, key in (
        ("model", [model.get("arch")], "model.arch"),
        ("task", [task] if task else [], "run.task"),
        ("builder", tree.get("datasets") or {}, "datasets"),
    ):
        for name in names:
            found += getattr(look_up(kind, name, key), "OLD_KEYS", ())
    return found


@contextmanager
def _interpolations_named(path: str) -> Iterator[None]:
    """Raise UserError for an interpolation in what chooses classes that leads nowhere."""
    try:
        yield
    except InterpolationResolutionError as error:
        reason = shortened(str(error).partition("\n")[0], 120)
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{path}: {key}{reason}.") from None


def load_yaml(path: Path) -> DictConfig:
    """A YAML file as a mapping. Raises UserError naming the file, and the line that isn't YAML."""
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_more_than_values(text)
        config = OmegaConf.load(io.StringIO(text))
    except OSError as error:
        reason = error.strerror or "it isn't a mapping of keys to values"  # OmegaConf's own
        raise UserError(f"{path}: the config can't be read ({reason}).") from None
    except (yaml.YAMLError, *MISVALUED) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not a YAML file{where} ({_problem(error)}).") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: not a config ({str(error).splitlines()[0]}).") from None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{path}: no config; it must have the sections model, datasets and run.")
    return config


def merge(defaults: DictConfig, given: DictConfig) -> DictConfig:
    """``defaults`` with what is ``given`` in place of theirs.

    Raises UserError naming the key where one has a list and the other a mapping.
    """
    try:
        merged = OmegaConf.merge(defaults, given)
    except (OmegaConfBaseException, TypeError):
        _refuse_list_for_mapping(
            OmegaConf.to_container(defaults), OmegaConf.to_container(given), where=""
        )
        raise
    assert isinstance(merged, DictConfig)
    return merged


def parse_options(options: Sequence[str]) -> DictConfig:
    """``KEY=VALUE`` or LAVIS's ``KEY VALUE`` pairs as a config tree."""
    if options and "=" not in options[0] and len(options) % 2 == 0:
        options = [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    return reduce(merge, map(_parse_option, options), OmegaConf.create({}))


def _parse_option(entry: str) -> DictConfig:
    key, equals, _ = entry.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(
            f"--options: '{shortened(entry)}' isn't of the form KEY=VALUE, such as run.max_epoch=3."
        )
    try:
        _refuse_more_than_values(entry.partition("=")[2])
        return OmegaConf.from_dotlist([entry])
    except (*MISFITS, yaml.YAMLError, *MISVALUED) as error:
        raise UserError(
            f"--options: the value in '{shortened(entry)}' isn't YAML ({_problem(error)})."
        ) from None


def _refuse_more_than_values(text: str) -> None:
    """Refuse YAML that makes anything but plain values, or far more of them than it has letters.

    With its aliases written out a text may have no end. Raises YAMLError.
    """
    left = MOST_VALUES

    def check(node: yaml.Node | None, level: int) -> None:
        nonlocal left
        left -= 1
        if node is None:
            return
        if left < 0 or level > MOST_LEVELS:
            raise yaml.MarkedYAMLError(problem=TOO_MUCH, problem_mark=node.start_mark)
        if node.tag not in PLAIN_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(
                problem=f"{tag} makes more than a value", problem_mark=node.start_mark
            )
        for each in node.value if isinstance(node, yaml.CollectionNode) else ():
            for inner in each if isinstance(each, tuple) else [each]:
                check(inner, level + 1)

    try:
        check(yaml.compose(text, Loader=yaml.SafeLoader), 0)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=TOO_MUCH) from None


def _problem(error: Exception) -> str:
    """What is wrong with a YAML text, for a message."""
    if isinstance(error, UnicodeError):
        return "it isn't text"
    if isinstance(error, LookupError):
        return "a value isn't of the kind that its tag says"
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    if "integer string conversion" in problem:  # Python's limit
        return "a number of thousands of digits"
    return shortened(str(problem), 120)


def _refuse_list_for_mapping(defaults: Any, given: Any, where: str) -> None:
    kinds: dict[type, str] = {list: "a list", dict: "a mapping"}
    old, new = type(defaults), type(given)
    if old in kinds and new in kinds and old is not new:
        raise UserError(
            f"{where} is {kinds[old]}, and {kinds[new]} can't take its place; give all of it as "
            f"{'[VALUE, ...]' if old is list else 'KEY: VALUE'}."
        )
    if old is new is dict:
        for key in defaults.keys() & given.keys():
            _refuse_list_for_mapping(
                defaults[key], given[key], f"{where}.{key}" if where else str(key)
            )


def _check_sections(given: DictConfig, path: str) -> None:
    for section in given:
        if section not in SECTIONS:
            hint = nearest(str(section), SECTIONS) or f" There are: {', '.join(SECTIONS)}."
            raise UserError(f"{path}: there is no section '{section!s}'.{hint}")
    for section in ("model", "datasets", "run"):
        if not OmegaConf.is_dict(given.get(section)):
            raise UserError(f"{path}: the section '{section}' is missing, or isn't a mapping.")
    if not given.model.get("arch"):
        raise UserError(f"{path}: model.arch is missing; it names a model of the registry.")


def _refuse_unset(tree: Any, path: str, where: str = "") -> None:
    """Refuse OmegaConf's mark for a value to come: merging would quietly leave the default."""
    for key, value in tree.items():
        if isinstance(value, dict):
            _refuse_unset(value, path, f"{where}{key}.")
        elif value == "???":
            raise UserError(f"{path}: {where}{key} is ???; give it a value.")


def import_modules(names: Any) -> None:
    """Import modules, of the working directory too, for what they register.

    Raises UserError for anything but a list of names, and for a module that can't be imported.
    """
    if not isinstance(names, list) or not all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        for name in names
    ):
        raise UserError(f"imports is {shown(names)}; it must be a list of names of modules.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"imports: the module '{name}' can't be imported ({error}).") from None


def _with_defaults(given: DictConfig) -> DictConfig:
    schema_of("model", given.model.arch, "model.arch")
    model_class = look_up("model", given.model.arch, "model.arch")
    defaults = OmegaConf.create({"model": model_class.default_section(given.model)})
    for name in list(given.datasets):
        key = f"datasets.{name}"
        if given.datasets[name] is None:  # `name:` with nothing below it: the defaults
            given.datasets[name] = {}
        section = given.datasets[name]
        if not OmegaConf.is_dict(section):
            raise UserError(f"{key} is {shown(section)}; it must be {A_MAPPING}.")
        schema_of("builder", name, key)
        path = look_up("builder", name, key).default_config_path(section.get("type"))
        if path is not None:
            defaults = merge(defaults, load_yaml(Path(path)))
    return merge(defaults, given)
