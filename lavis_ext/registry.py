"""The one module through which this library sees LAVIS.

Importing any part of LAVIS 1.0.2, its last release, imports every model it has, and most of them
fail on current transformers. The parts that this library builds on need none of them. So this
module, on import,

1. puts module objects in place of those initialisers of LAVIS that import its models; they import
   what their initialiser names when it is asked for,
2. puts off the import of heavy packages for which LAVIS has a rare use, and this library none,
3. registers the paths and states that LAVIS's own initialiser registers, and
4. makes LAVIS's registry answer an unknown name with the names it has, instead of None.

A ``lavis`` that has been imported before, beside the packages of its time, is used as it is. All
this is done on import because a class cannot derive from LAVIS's ``BaseModel`` otherwise.
"""

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

from lavis_ext.common.environment import find_lavis, import_torchvision
from lavis_ext.common.errors import UserError, nearest

__all__ = [
    "BaseDatasetBuilder",
    "BaseModel",
    "BaseProcessor",
    "BaseTask",
    "LavisConfig",
    "LinearWarmupCosineLRScheduler",
    "NameTaken",
    "RunnerBase",
    "StrictRegistry",
    "UnknownName",
    "registered",
    "registry",
]

# The packages whose initialisers import LAVIS's models, each after its parent.
REPLACED = (
    "lavis",
    "lavis.datasets.builders",
    "lavis.models",
    "lavis.processors",
    "lavis.runners",
    "lavis.tasks",
)


def _enter_without_initialisers(spec: ModuleSpec) -> None:
    """Put a module object for each of ``REPLACED`` into ``sys.modules``; ``spec`` is LAVIS's."""
    for name in REPLACED:
        parent_name, _, last = name.rpartition(".")
        parent = importlib.import_module(parent_name) if parent_name else None
        found = PathFinder.find_spec(name, parent.__path__) if parent else spec
        if found is None or found.origin is None:
            raise ImportError(f"{name} has no initialiser under {spec.origin}", name=name)
        module = module_from_spec(found)
        module.__dict__["__getattr__"] = _names_of_initialiser(name, Path(found.origin))
        sys.modules[name] = module
        if parent:
            setattr(parent, last, module)


def _names_of_initialiser(package: str, initialiser: Path) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` for ``package``: what its ``initialiser`` would import."""
    sources = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in ast.parse(initialiser.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }

    def resolve(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, attribute = sources[name]
        return getattr(importlib.import_module(module), attribute)

    return resolve


class _OnUse(ModuleType):
    """Stands for a module, which is imported when one of its attributes is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _open_video(*args: Any, **kwargs: Any) -> Any:
    decord = importlib.import_module("decord")
    decord.bridge.set_bridge("torch")
    return decord.VideoReader(*args, **kwargs)


def _stand_in(name: str, **attributes: Any) -> ModuleType:
    module = _OnUse(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(attributes)
    return module


@contextmanager
def _heavy_packages_on_use() -> Iterator[None]:
    """Within it, ``import`` finds stand-ins for timm, pandas and decord, unless they are imported.

    LAVIS imports timm for a download helper (more than a second, and a FutureWarning), pandas to
    read CSV files (half a second) and decord to read videos (no wheels for some systems).
    """
    hub = _stand_in("timm.models.hub")
    models = _stand_in("timm.models", hub=hub)
    packages = {
        "timm": {"timm": _stand_in("timm", models=models), models.__name__: models},
        "pandas": {"pandas": _stand_in("pandas")},
        "decord": {
            # LAVIS sets the bridge and takes the reader as soon as it has imported decord.
            "decord": _stand_in(
                "decord",
                bridge=SimpleNamespace(set_bridge=lambda backend: None),
                VideoReader=_open_video,
            )
        },
    }
    packages["timm"][hub.__name__] = hub
    placed = {
        name: module
        for package, modules in packages.items()
        if package not in sys.modules
        for name, module in modules.items()
    }
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name in placed:
            del sys.modules[name]


if "lavis" not in sys.modules:
    _spec = find_lavis()
    import_torchvision()
    _enter_without_initialisers(_spec)

with _heavy_packages_on_use():
    from lavis.common.registry import Registry, registry

    if "library_root" not in registry.mapping["paths"]:
        _library = Path(sys.modules["lavis"].__path__[0])
        registry.register_path("library_root", str(_library))
        registry.register_path("repo_root", str(_library.parent))
        # LAVIS 1.0.2 has a folder in its authors' home here. A relative path in a config is looked
        # for in the folder one works in: site-packages is no place for anybody's data.
        registry.register_path("cache_root", str(Path("data").absolute()))
        registry.register("MAX_INT", sys.maxsize)
        registry.register("SPLIT_NAMES", ["train", "val", "test"])

    from lavis.common.config import Config as LavisConfig
    from lavis.common.optims import LinearWarmupCosineLRScheduler
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
    from lavis.models.base_model import BaseModel
    from lavis.processors.base_processor import BaseProcessor
    from lavis.runners.runner_base import RunnerBase
    from lavis.tasks.base_task import BaseTask


class UnknownName(UserError, KeyError):
    """Nothing is registered under the name asked for."""

    __str__ = Exception.__str__  # KeyError's own puts the message in quotes


class NameTaken(UserError, KeyError):
    """Another class is registered under the name already."""

    __str__ = Exception.__str__


# As LAVIS names them in its methods, and as a reader calls them. The last three are this library's.
KINDS = {
    "builder": "dataset builder",
    "task": "task",
    "processor": "processor",
    "model": "model",
    "lr_scheduler": "learning-rate scheduler",
    "runner": "runner",
    "encoder": "encoder",
    "fusion": "fusion",
    "objective": "objective",
}

Class = TypeVar("Class", bound=type)


def registered() -> dict[str, list[str]]:
    """The names registered of each kind of ``KINDS``, sorted."""
    return {kind: sorted(_classes(kind)) for kind in KINDS}


def _classes(kind: str) -> dict[str, Any]:
    return registry.mapping.setdefault(f"{kind}_name_mapping", {})


def _look_up(kind: str, entries: dict[str, Any], name: str) -> Any:
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none yet"
        raise UnknownName(
            f"No {kind} is registered as '{name}'. Registered: {known}.{nearest(name, entries)}"
        )
    return entries[name]


def _getter(kind: str) -> Any:
    def get_class(cls: type, name: str) -> Any:
        return _look_up(KINDS[kind], _classes(kind), name)

    get_class.__doc__ = f"The {KINDS[kind]} registered as ``name``; raises UnknownName."
    return classmethod(get_class)


def _registrar(kind: str) -> Any:
    def register_class(cls: type, name: str) -> Callable[[Class], Class]:
        def add(added: Class) -> Class:
            holder = _classes(kind).setdefault(name, added)
            if holder is not added:
                raise NameTaken(
                    f"The {KINDS[kind]} name '{name}' belongs to {holder.__module__}."
                    f"{holder.__qualname__}; register {added.__qualname__} under another."
                )
            return added

        return add

    register_class.__doc__ = f"A class decorator: register it as the {KINDS[kind]} ``name``."
    return classmethod(register_class)


def _lister(kind: str) -> Any:
    def list_names(cls: type) -> list[str]:
        return sorted(_classes(kind))

    list_names.__doc__ = f"The names of each registered {KINDS[kind]}, sorted."
    return classmethod(list_names)


class StrictRegistry(Registry):
    """LAVIS's registry, over the same ``mapping``, with three more kinds and no None for an answer.

    ``get_*_class(name)`` and ``get_path(name)`` raise :class:`UnknownName`; LAVIS itself nowhere
    relies on None. Encoders, fusions and objectives are registered by the class decorators
    ``register_encoder(name)``, ``register_fusion(name)`` and ``register_objective(name)``, which
    raise :class:`NameTaken`.
    """

    get_builder_class = _getter("builder")
    get_task_class = _getter("task")
    get_processor_class = _getter("processor")
    get_model_class = _getter("model")
    get_lr_scheduler_class = _getter("lr_scheduler")
    get_runner_class = _getter("runner")

    register_encoder = _registrar("encoder")
    get_encoder_class = _getter("encoder")
    list_encoders = _lister("encoder")

    register_fusion = _registrar("fusion")
    get_fusion_class = _getter("fusion")
    list_fusions = _lister("fusion")

    register_objective = _registrar("objective")
    get_objective_class = _getter("objective")
    list_objectives = _lister("objective")

    @classmethod
    def get_path(cls, name: str) -> str:
        """The path registered as ``name``; raises UnknownName."""
        return _look_up("path", cls.mapping["paths"], name)


registry.__class__ = StrictRegistry
