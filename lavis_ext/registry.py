"""The only module that imports LAVIS.

Importing any part of LAVIS 1.0.2, its last release, imports all of its models, most of which fail
with current transformers. The parts used here don't need them. So this module, on import,

1. replaces the packages whose ``__init__.py`` imports LAVIS's models by lazy ones, which import
   each name on first access,
2. defers the import of heavy packages that LAVIS rarely uses and this library never,
3. registers the paths and states that LAVIS's own ``__init__.py`` registers, and
4. makes LAVIS's registry raise an error with the known names for an unknown one, instead of
   returning None.

A ``lavis`` that is imported already, in an environment that it supports, is left unchanged. This
happens on import because classes derive from LAVIS's ``BaseModel``.
"""

import ast
import importlib
import sys
import warnings
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
    "registered_name",
    "registry",
    "vqa_eval_class",
]

# Packages whose __init__.py imports LAVIS's models, parents first.
LAZY_PACKAGES = (
    "lavis",
    "lavis.datasets.builders",
    "lavis.models",
    "lavis.processors",
    "lavis.runners",
    "lavis.tasks",
)


def _add_lazy_packages(spec: ModuleSpec) -> None:
    """Add a lazy module for each of ``LAZY_PACKAGES`` to ``sys.modules``.

    ``spec`` is the import spec of ``lavis``. Raises ImportError for a missing package.
    """
    for name in LAZY_PACKAGES:
        parent_name, _, last = name.rpartition(".")
        parent = importlib.import_module(parent_name) if parent_name else None
        found = PathFinder.find_spec(name, parent.__path__) if parent else spec
        if found is None or found.origin is None:
            raise ImportError(f"{name} has no __init__.py under {spec.origin}", name=name)
        module = module_from_spec(found)
        module.__dict__["__getattr__"] = _lazy_getattr(name, Path(found.origin))
        sys.modules[name] = module
        if parent:
            setattr(parent, last, module)


def _lazy_getattr(package: str, init_file: Path) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that imports the names in the package's ``__init__.py``."""
    sources = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in ast.parse(init_file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }

    def resolve(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, attribute = sources[name]
        return getattr(importlib.import_module(module), attribute)

    return resolve


class _LazyModule(ModuleType):
    """Imports its module on access to an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _open_video(*args: Any, **kwargs: Any) -> Any:
    decord = importlib.import_module("decord")
    decord.bridge.set_bridge("torch")
    return decord.VideoReader(*args, **kwargs)


def _lazy_module(name: str, **attributes: Any) -> ModuleType:
    module = _LazyModule(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(attributes)
    return module


@contextmanager
def _lazy_heavy_packages() -> Iterator[None]:
    """Import timm, pandas and decord lazily, unless they are imported already.

    LAVIS imports timm for a download helper (more than a second, and a FutureWarning), pandas to
    read CSV files (half a second) and decord to read videos (no wheels for some systems).
    """
    hub = _lazy_module("timm.models.hub")
    models = _lazy_module("timm.models", hub=hub)
    packages = {
        "timm": {"timm": _lazy_module("timm", models=models), models.__name__: models},
        "pandas": {"pandas": _lazy_module("pandas")},
        "decord": {
            # LAVIS sets the bridge and imports the reader immediately after decord.
            "decord": _lazy_module(
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
    _add_lazy_packages(_spec)

with _lazy_heavy_packages():
    from lavis.common.registry import Registry, registry

    if "library_root" not in registry.mapping["paths"]:
        _library = Path(sys.modules["lavis"].__path__[0])
        registry.register_path("library_root", str(_library))
        registry.register_path("repo_root", str(_library.parent))
        # LAVIS 1.0.2 has a folder in its authors' home here. Relative paths in configs start from
        # the working directory instead.
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
    """A name under which no class is registered."""

    __str__ = Exception.__str__  # KeyError's own quotes the message


class NameTaken(UserError, KeyError):
    """A name under which another class is registered already."""

    __str__ = Exception.__str__


# Kinds as in the names of the registry's methods, and as in messages. The last four are this
# library's.
KINDS = {
    "builder": "dataset builder",
    "task": "task",
    "processor": "processor",
    "model": "model",
    "lr_scheduler": "learning-rate scheduler",
    "runner": "runner",
    "encoder": "encoder",
    "question_encoder": "question encoder",
    "fusion": "fusion",
    "objective": "objective",
}

Class = TypeVar("Class", bound=type)


def vqa_eval_class() -> type[Any]:
    """The class ``VQAEval``, LAVIS's copy of the VQA challenge's evaluation script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its patterns aren't raw strings
        module = importlib.import_module("lavis.common.vqa_tools.vqa_eval")
    found: type[Any] = module.VQAEval
    return found


def registered() -> dict[str, list[str]]:
    """The registered names by kind of ``KINDS``, sorted."""
    return {kind: sorted(_classes(kind)) for kind in KINDS}


def registered_name(kind: str, cls: type) -> str:
    """The name under which a class is registered as a ``kind``; its ``__name__`` if it isn't."""
    return next((name for name, each in _classes(kind).items() if each is cls), cls.__name__)


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
            existing = _classes(kind).setdefault(name, added)
            if existing is not added:
                raise NameTaken(
                    f"The {KINDS[kind]} name '{name}' belongs to {existing.__module__}."
                    f"{existing.__qualname__}; register {added.__qualname__} under another."
                )
            return added

        return add

    register_class.__doc__ = (
        f"Class decorator that registers the {KINDS[kind]} ``name``; raises NameTaken."
    )
    return classmethod(register_class)


def _lister(kind: str) -> Any:
    def list_names(cls: type) -> list[str]:
        return sorted(_classes(kind))

    list_names.__doc__ = f"The names of every registered {KINDS[kind]}, sorted."
    return classmethod(list_names)


class StrictRegistry(Registry):
    """LAVIS's registry, with the same ``mapping``, four more kinds and strict look-up.

    ``get_*_class(name)`` and ``get_path(name)`` raise :class:`UnknownName` instead of returning
    None, which LAVIS never relies on. Encoders, question encoders, fusions and objectives are
    registered by the class decorators ``register_encoder(name)``,
    ``register_question_encoder(name)``, ``register_fusion(name)`` and
    ``register_objective(name)``, which raise :class:`NameTaken`.
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

    register_question_encoder = _registrar("question_encoder")
    get_question_encoder_class = _getter("question_encoder")
    list_question_encoders = _lister("question_encoder")

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
