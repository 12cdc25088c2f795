"""A run's config: the model type's defaults, the data set's, the YAML and ``--options``, merged."""

import copy
import importlib
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from lavis_ext.common.errors import UserError, is_text, nearest, shortened
from lavis_ext.common.files import check_regular
from lavis_ext.config.renamed import OldKey, rename_old_keys
from lavis_ext.config.scalars import load, option_value
from lavis_ext.config.schema import changeable_keys
from lavis_ext.config.typed import A_MAPPING, MISFITS, look_up, schema_of, shown, typed
from lavis_ext.registry import LavisConfig, registry

SECTIONS = ("model", "datasets", "task", "run", "imports")
DEFAULT_RUNNER = "trainer"
MOST_VALUES = 10_000
"""Limit for a YAML file, with aliases expanded; a run's config has about two hundred values."""
MOST_LEVELS = 50
TOO_MUCH = f"more than {MOST_VALUES:,} values or {MOST_LEVELS} levels of nesting"
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp", "value")
)


MISVALUED = (ValueError, LookupError, OverflowError)
"""Errors of PyYAML for malformed numbers, dates and texts."""


class Config(LavisConfig):
    """LAVIS's config, typed and checked as a whole before anything is built.

    Later sources override earlier ones: the defaults of ``model.model_type``, those of each data
    set's ``type``, the YAML, the options. Modules in a YAML's ``imports`` are imported first, to
    register classes from outside this package.

    Attributes:
        run, model, task: the typed sections, owned by the runner's, model's and task's classes.
        datasets: the typed sections by data set.
        renamed: old keys of the config with their new names, for the log.
        read_at: time of reading, in seconds since the epoch; a run's folder is named by it.
        config: all sections as one OmegaConf tree; ``run_cfg``, ``model_cfg`` and ``datasets_cfg``
            read it, as in LAVIS.
    """

    def __init__(self, args: Namespace) -> None:
        """``args`` has ``cfg_path`` and ``options`` (a list of KEY=VALUE), as in LAVIS."""
        self.args = args
        self.read_at = time.time()
        path = f"{args.cfg_path}{' with --options' if args.options else ''}"
        sources = load_yaml(Path(args.cfg_path)), parse_options(args.options or [])
        for source in sources:
            _check_no_missing_values(OmegaConf.to_container(source), path)
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
            raise UserError(f"{path}: run.task is missing; set it to a registered task's name.")
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
        """Keys and key patterns that a resumed run may change."""
        found = changeable_keys(self.run, "run") | changeable_keys(self.task, "task")
        found |= changeable_keys(self.model, "model")
        for name, section in self.datasets.items():
            found |= changeable_keys(section, f"datasets.{name}")
        return found

    def upgraded(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A config saved by an earlier version: old keys renamed, new ones at their defaults."""
        tree = copy.deepcopy(saved)
        rename_old_keys(tree, old_keys_of(OmegaConf.create(tree)))
        model = tree.get("model") or {}
        arch = look_up("model", model.get("arch"), "model.arch")
        if hasattr(arch, "complete_saved"):  # LAVIS's own models have none
            arch.complete_saved(model)
        return _with_new_options(tree)

    def _renamed(self, source: DictConfig, old_keys: Sequence[OldKey]) -> DictConfig:
        tree: Any = OmegaConf.to_container(source)
        self.renamed |= rename_old_keys(tree, old_keys)
        return OmegaConf.create(tree)


def _with_new_options(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the options that there were none of then, at their defaults.

    A section that today's options don't fit stays as it is.
    """
    run = saved.get("run") or {}
    runner = run.get("runner") or DEFAULT_RUNNER

    def completed(kind: str, registered: Any, section: Any, key: str) -> Any:
        try:
            config = typed(schema_of(kind, registered, key), section or {}, key)
        except UserError:
            return section
        return OmegaConf.to_container(OmegaConf.structured(config))

    found = {
        "model": completed("model", saved["model"].get("arch"), saved["model"], "model"),
        "run": completed("runner", runner, run, "run"),
        "datasets": {
            name: completed("builder", name, section, f"datasets.{name}")
            for name, section in (saved.get("datasets") or {}).items()
        },
    }
    if run.get("task"):
        found["task"] = completed("task", run["task"], saved.get("task"), "task")
    return saved | found


def old_keys_of(given: DictConfig) -> list[OldKey]:
    """Renamed keys of the classes used in a config."""
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
    """Turn an unresolvable interpolation into a UserError naming its key."""
    try:
        yield
    except InterpolationResolutionError as error:
        reason = shortened(str(error).partition("\n")[0], 120)
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{path}: {key}{reason}.") from None


def load_yaml(path: Path) -> DictConfig:
    """Read a YAML file as a mapping. Raises UserError naming the file and the malformed line."""
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
        _check_plain_values(text)
        content = load(text)
        if content is not None and not isinstance(content, dict | list):
            raise UserError(
                f"{path}: the config can't be read (it isn't a mapping of keys to values)."
            )
        config = OmegaConf.create(content or {})
    except OSError as error:
        raise UserError(f"{path}: the config can't be read ({error.strerror}).") from None
    except (yaml.YAMLError, *MISVALUED) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: invalid YAML{where} ({_problem(error)}).") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: not a config ({str(error).splitlines()[0]}).") from None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(f"{path}: not a config; it needs the sections model, datasets and run.")
    return config


def merge(defaults: DictConfig, given: DictConfig) -> DictConfig:
    """``defaults`` overridden by ``given``.

    Raises UserError naming the key if one has a list and the other a mapping.
    """
    try:
        merged = OmegaConf.merge(defaults, given)
    except (OmegaConfBaseException, TypeError):
        _check_same_kinds(OmegaConf.to_container(defaults), OmegaConf.to_container(given), where="")
        raise
    assert isinstance(merged, DictConfig)
    return merged


def parse_options(options: Sequence[str]) -> DictConfig:
    """Parse ``KEY=VALUE`` or LAVIS's ``KEY VALUE`` pairs to a config tree; see ``option_value``."""
    return reduce(merge, map(_parse_option, assignments(options)), OmegaConf.create({}))


def assignments(options: Sequence[str]) -> list[str]:
    """``--options`` as ``KEY=VALUE``, also if they are LAVIS's ``KEY VALUE`` pairs."""
    if options and "=" not in options[0] and len(options) % 2 == 0:
        return [f"{key}={value}" for key, value in zip(options[::2], options[1::2], strict=True)]
    return list(options)


def _parse_option(entry: str) -> DictConfig:
    key, equals, value = entry.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(
            f"--options: '{shortened(entry)}' isn't of the form KEY=VALUE, such as run.max_epoch=3."
        )
    if not is_text(entry):
        raise UserError(
            f"--options: '{shortened(entry)}' has bytes that are no text; write it in UTF-8."
        )
    try:
        if value.lstrip().startswith(("[", "{", "!!")):
            _check_plain_values(value)
        option = OmegaConf.create({})
        OmegaConf.update(option, key, option_value(value))
        return option
    except (*MISFITS, yaml.YAMLError, *MISVALUED) as error:
        raise UserError(
            f"--options: the value in '{shortened(entry)}' is invalid YAML ({_problem(error)})."
        ) from None


def _check_plain_values(text: str) -> None:
    """Raise YAMLError for YAML with tagged values, or with too many values.

    Expanded aliases can make a short text arbitrarily large.
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
                problem=f"the tag {tag} is not allowed, only plain values",
                problem_mark=node.start_mark,
            )
        for each in node.value if isinstance(node, yaml.CollectionNode) else ():
            for inner in each if isinstance(each, tuple) else [each]:
                check(inner, level + 1)

    try:
        check(yaml.compose(text, Loader=yaml.SafeLoader), 0)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=TOO_MUCH) from None


def _problem(error: Exception) -> str:
    """Description of a YAML error, for a message."""
    if isinstance(error, UnicodeError):
        return "it isn't text"
    if isinstance(error, LookupError):
        return "a value doesn't match its tag"
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    if "integer string conversion" in problem:  # Python's limit
        return "a number with thousands of digits"
    return shortened(str(problem), 120)


def _check_same_kinds(defaults: Any, given: Any, where: str) -> None:
    kinds: dict[type, str] = {list: "a list", dict: "a mapping"}
    old, new = type(defaults), type(given)
    if old in kinds and new in kinds and old is not new:
        raise UserError(
            f"{where} is {kinds[old]} and can't be replaced by {kinds[new]}; write it as "
            f"{'[VALUE, ...]' if old is list else 'KEY: VALUE'}."
        )
    if old is new is dict:
        for key in defaults.keys() & given.keys():
            _check_same_kinds(defaults[key], given[key], f"{where}.{key}" if where else str(key))


def _check_sections(given: DictConfig, path: str) -> None:
    for section in given:
        if section not in SECTIONS:
            hint = nearest(str(section), SECTIONS) or f" There are: {', '.join(SECTIONS)}."
            raise UserError(f"{path}: unknown section '{section!s}'.{hint}")
    for section in ("model", "datasets", "run"):
        if not OmegaConf.is_dict(given.get(section)):
            raise UserError(f"{path}: the section '{section}' is missing, or isn't a mapping.")
    if not given.model.get("arch"):
        raise UserError(f"{path}: model.arch is missing; set it to a registered model's name.")


def _check_no_missing_values(tree: Any, path: str, where: str = "") -> None:
    """Raise UserError for OmegaConf's placeholder ``???``, which merging ignores silently."""
    for key, value in tree.items():
        if isinstance(value, dict):
            _check_no_missing_values(value, path, f"{where}{key}.")
        elif value == "???":
            raise UserError(f"{path}: {where}{key} is ???, which means missing; set a value.")


def import_modules(names: Any) -> None:
    """Import modules, also from the working directory, to register their classes.

    Raises UserError for anything but a list of names, and for a failed import.
    """
    if not isinstance(names, list) or not all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        for name in names
    ):
        raise UserError(f"imports is {shown(names)}; it must be a list of module names.")
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
        if given.datasets[name] is None:  # `name:` without content: the defaults
            given.datasets[name] = {}
        section = given.datasets[name]
        if not OmegaConf.is_dict(section):
            raise UserError(f"{key} is {shown(section)}; it must be {A_MAPPING}.")
        schema_of("builder", name, key)
        section = look_up("builder", name, key).default_section(section)
        defaults = merge(defaults, OmegaConf.create({"datasets": {name: section}}))
    return merge(defaults, given)
