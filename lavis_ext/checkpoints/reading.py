"""Find, read and load a module's pretrained weights.

A module's config extends :class:`PretrainedConfig`, which has the options for their source.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lavis_ext.checkpoints.foreign import ForeignNames, translate
from lavis_ext.checkpoints.sources import WEIGHT_FILES, resolve
from lavis_ext.checkpoints.weights import LoadReport, load_into, read_state_dict
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option

WEIGHTS_HELP = "hub name, local path or URL; null starts from random weights"
ALLOW_UNEXPECTED_HELP = "patterns of unused names that the checkpoint may have"
OWN_NAMES = ForeignNames()
"""For modules whose parameter names are the same in all programs."""


@dataclass
class PretrainedConfig:
    """Options of a module with optional pretrained weights."""

    weights: str | None = option(None, WEIGHTS_HELP, files=WEIGHT_FILES)
    allow_missing: list[str] = option(list, "patterns of names that the checkpoint may lack")
    allow_unexpected: list[str] = option(list, ALLOW_UNEXPECTED_HELP)


def load_pretrained(
    module: nn.Module,
    config: PretrainedConfig,
    *,
    name: str,
    key: str,
    foreign: ForeignNames = OWN_NAMES,
) -> LoadReport | None:
    """Load the checkpoint ``config.weights``, or return None where it is null.

    Args:
        module: receives the tensors; tied parameters may be stored under just one of their names.
        config: the checkpoint's source, and the names that it may lack or have unused.
        name: the module's name, for the report and error messages.
        key: config key of ``weights``, for error messages.
        foreign: other programs' names of the module's parameters. Wrappers and prefixes are
            detected without it.

    Raises UserError for a checkpoint that can't be found, read or matched (see ``resolve``,
    ``read_state_dict``, ``translate`` and ``load_into``); the module is then unchanged.
    """
    if config.weights is None:
        return None
    source = f"{name} from {config.weights}"
    path = resolve(config.weights, key=key)
    try:
        stored = read_state_dict(path)
    except UserError as error:
        raise UserError(
            f"{key}: {error} Set the key to a file or folder of weights, or a hub name."
        ) from None
    state_dict, notes = translate(stored, module, foreign, source=source)
    return load_into(
        module,
        _with_tied_names(state_dict, module),
        name=source,
        allow_missing=config.allow_missing,
        allow_unexpected=config.allow_unexpected,
        notes=notes,
    )


def _with_tied_names(state_dict: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Tensors under all names of tied parameters, since transformers saves only one."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    tied = {
        name: state_dict[stored]
        for names in names_of.values()
        if (stored := next((name for name in names if name in state_dict), None))
        for name in names
    }
    return {**tied, **state_dict}
