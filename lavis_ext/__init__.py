"""Fusion training for visual question answering, in LAVIS's registry and config.

Importing the package registers its models, data sets, processors, tasks, runner and schedule in
LAVIS's own registry.
"""

from typing import TYPE_CHECKING, Any

# Imported to be registered.
from lavis_ext import datasets, models, objectives, processors, runners, tasks  # noqa: F401
from lavis_ext.common.version import __version__
from lavis_ext.registry import registered, registry

if TYPE_CHECKING:
    from lavis_ext.ask.pipeline import load_pipeline
    from lavis_ext.registry import BaseModel

__all__ = ["__version__", "load_model", "load_pipeline", "registered", "registry"]


def load_model(name: str, model_type: str, *, is_eval: bool = False) -> "BaseModel":
    """Load a registered model with its pretrained weights, like LAVIS's ``load_model``.

    Args:
        name: name of the model in the registry, such as ``pnp_vqa_fusion``.
        model_type: type of the model, such as ``base_esam``; or trained weights, by path or name
            on the hub.
        is_eval: whether to set it to evaluation mode.

    Raises:
        UserError: for an unknown name or type, and for weights that can't be downloaded or loaded.
    """
    model = registry.get_model_class(name).from_pretrained(model_type=model_type)
    return model.eval() if is_eval else model


def __getattr__(name: str) -> Any:
    # Imported on first use because it takes seconds, which `import lavis_ext` doesn't need.
    if name == "load_pipeline":
        from lavis_ext.ask.pipeline import load_pipeline

        return load_pipeline
    raise AttributeError(f"module 'lavis_ext' has no attribute '{name}'")
