"""Which parameters are trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from lavis_ext.checkpoints.trained_weights import renamed
from lavis_ext.common.errors import UserError, nearest
from lavis_ext.models.base import TrainableModel


def freeze_all_but(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let only the parameters whose names match one of ``patterns`` be trained.

    To be called before the optimizer and DDP are made: both take stock of what is trainable.
    Raises UserError for a pattern that matches nothing, and if nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = sorted({f"{name.split('.')[0]}.*" for name in names})
            raise UserError(
                f"run.trainable: no parameter matches '{pattern}'.{nearest(pattern, parts)} "
                f"The model's parts are: {', '.join(parts)}."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"run.trainable: {list(patterns)} leaves nothing to train.")


def trained_patterns(model: TrainableModel, given: Sequence[str] | None) -> list[str]:
    """The patterns of what is trained: those ``given``, by today's names, or the model's own.

    Of the model's own, those are left out that match nothing: not every objective has parameters.
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


def train_mode(model: nn.Module) -> None:
    """Put the modules with trainable parameters into training mode, all others into evaluation.

    A frozen module in training mode would still drop activations at random.
    """
    for module in model.modules():
        module.training = any(parameter.requires_grad for parameter in module.parameters())
    for module in model.modules():
        if module.training:
            for child in module.children():
                # A module without parameters (dropout) follows its parent.
                if next(child.parameters(), None) is None:
                    child.train()


def parts_table(model: nn.Module) -> str:
    """The model's parts, their parameters, and how many of them are trained, as lines of text."""
    rows = [("part", "parameters", "trainable")]
    for name, parameters in [*_parts(model), ("total", list(model.parameters()))]:
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        rows.append((name, f"{sum(p.numel() for p in parameters):,}", f"{trained:,}"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}} {count:>14} {trained:>14}" for name, count, trained in rows)


def _parts(module: nn.Module, prefix: str = "") -> list[tuple[str, list[nn.Parameter]]]:
    """Children with their parameters, divided where they are trained in part or have names."""
    parts = [(f"{prefix}{name}", [p]) for name, p in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        parameters = list(child.parameters())
        mixed = len({p.requires_grad for p in parameters}) > 1
        if mixed or isinstance(child, nn.ModuleDict) or name == "fusion":
            parts += _parts(child, f"{prefix}{name}.")
        elif parameters:
            parts.append((f"{prefix}{name}", parameters))
    return parts
