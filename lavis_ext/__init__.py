"""Fusion training for visual question answering, in LAVIS's registry and config.

Importing the package registers its models, data sets, processors, tasks, runner and schedule in
LAVIS's own registry.
"""

from typing import TYPE_CHECKING

# Imported to be registered.
from lavis_ext import datasets, models, objectives, processors, runners, tasks  # noqa: F401
from lavis_ext.common.version import __version__
from lavis_ext.registry import registered, registry

if TYPE_CHECKING:
    from lavis_ext.registry import BaseModel

__all__ = ["__version__", "load_model", "registered", "registry"]


def load_model(name: str, model_type: str, *, is_eval: bool = False) -> "BaseModel":
    """A registered model with its pretrained weights, as LAVIS's ``load_model`` builds one.

    Args:
        name: the model's name in the registry, such as ``pnp_vqa_fusion``.
        model_type: one of the model's types, such as ``base_esam``.
        is_eval: whether to put it into evaluation mode.

    Raises:
        UserError: for an unknown name or type, and for weights that can't be fetched.
    """
    model = registry.get_model_class(name).from_pretrained(model_type=model_type)
    return model.eval() if is_eval else model
