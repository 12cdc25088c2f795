"""Select the trained parameters, and freeze all others."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from lavis_ext.checkpoints.trained_weights import renamed
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.common.tables import Table, table
from lavis_ext.models.base import TrainableModel
from lavis_ext.models.lora import is_adapted, is_lora


def freeze_all_but(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters except LoRA's and those whose names match one of ``patterns``.

    Weights adapted by LoRA stay frozen. Call this before creating the optimizer and DDP, which read
    ``requires_grad`` once. Raises UserError for a pattern without matches, and if no parameter is
    left to train.
    """
    names = [name for name, _ in model.named_parameters() if not is_adapted(name)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = sorted({f"{name.split('.')[0]}.*" for name in names})
            raise UserError(
                f"run.trainable: no parameter matches '{pattern}'.{nearest(pattern, parts)} "
                f"The model's parts are: {', '.join(parts)}."
            )
    trained = {name for name in names if any(fnmatchcase(name, each) for each in patterns)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or is_lora(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"run.trainable: {list(patterns)} leaves nothing to train.")


def trained_patterns(model: TrainableModel, given: Sequence[str] | None) -> list[str]:
    """Patterns of trained parameters: those ``given``, under current names, or the model's own.

    Those of the model's own patterns that match nothing, as for objectives without parameters, are
    left out.
    """
    names = [name for name, _ in model.named_parameters()]

    def matching(patterns: Sequence[str]) -> list[str]:
        return [p for p in patterns if any(fnmatchcase(name, p) for name in names)]

    if given is None:
        return matching(model.trainable)
    found: list[str] = []
    for pattern in given:
        if pattern in model.OLD_TRAINABLE:
            found += matching(model.OLD_TRAINABLE[pattern]) or [pattern]
        else:
            found.append(renamed(pattern, model.OLD_PARAMETERS))
    return list(dict.fromkeys(found))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train_mode(model: nn.Module) -> None:
    """Put modules with trainable parameters into training mode, all others into eval mode.

    In training mode, a frozen module would still apply dropout.
    """
    for module in model.modules():
        module.training = any(parameter.requires_grad for parameter in module.parameters())
    for module in model.modules():
        if module.training:
            for child in module.children():
                # A module without parameters (dropout) follows its parent.
                if next(child.parameters(), None) is None:
                    child.train()


def parts_table(model: nn.Module) -> Table:
    """Table of the model's parts with their parameter counts, total and trained."""
    rows = []
    for name, parameters in [*_parts(model), ("total", list(model.parameters()))]:
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        rows.append((name, f"{sum(p.numel() for p in parameters):,}", f"{trained:,}"))
    return table(rows, ("part", "parameters", "trainable"))


def _parts(module: nn.Module, prefix: str = "") -> list[tuple[str, list[nn.Parameter]]]:
    """Child modules with their parameters, split further if only some are trained.

    LoRA parameters don't cause a split: they are spread over many small layers.
    """
    parts = [(f"{prefix}{name}", [p]) for name, p in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        parameters = list(child.parameters())
        own = {p.requires_grad for n, p in child.named_parameters(name) if not is_lora(n)}
        mixed = len(own) > 1
        if mixed or isinstance(child, nn.ModuleDict) or name == "fusion":
            parts += _parts(child, f"{prefix}{name}.")
        elif parameters:
            parts.append((f"{prefix}{name}", parameters))
    return parts
