"""LoRA (Hu et al., ICLR 2022) on any layers of a model, using ``peft``.

``peft`` wraps each adapted layer, so a parameter ``X.weight`` becomes
``X.base_layer.weight`` beside ``X.lora_A.default.weight`` and ``X.lora_B.default.weight``. Files
have ``X.weight``, ``X.lora_A.weight`` and ``X.lora_B.weight``.
"""

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lavis_ext.common.errors import UserError, listed
from lavis_ext.common.patterns import matching
from lavis_ext.config.schema import option

if TYPE_CHECKING:
    from lavis_ext.checkpoints.trained_weights import TrainedWeights
    from lavis_ext.models.base import TrainableModel

UPDATE_NAME = "default"
"""``peft``'s name of a model's only set of updates."""
WHERE = "model.lora"


@dataclass
class LoraConfig:
    """An entry of ``model.lora``: layers and their low-rank updates."""

    modules: list[str] = option(
        list, "Patterns of module names; their linear and 2D convolution layers are adapted."
    )
    rank: int = option(8, "Rank of the update.", at_least=1, at_most=4096)
    alpha: float = option(16.0, "The update is scaled by alpha / rank.", above=0)
    dropout: float = option(0.0, "Dropout on the input of the update.", at_least=0, at_most=0.99)

    def check_together(self, where: str) -> None:
        """Raise UserError for an entry without patterns."""
        if not self.modules:
            raise UserError(
                f"{where}.modules is empty; give patterns of module names, such as "
                "['*.attention.*']."
            )


def adapt(model: nn.Module, entries: Sequence[LoraConfig], where: str = WHERE) -> None:
    """Add updates to the layers that match ``entries``, in place.

    Updates start at zero, so the model's output is unchanged. Raises UserError for a pattern
    without matching layers, for a layer that matches two entries, and for one with a tied weight.
    """
    known = {name: layer for name, layer in model.named_modules() if _is_adaptable(layer)}
    inside = {
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)  # bypasses its layers' forward
        for child, _ in module.named_modules()
    }
    known = {name: layer for name, layer in known.items() if name not in inside}
    chosen = [_matched(entry, list(known), f"{where}[{n}]") for n, entry in enumerate(entries)]
    _check_overlaps(entries, chosen, where)
    _check_tied(model, {name: known[name] for names in chosen for name in names}, where)
    import peft  # takes a second

    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for entry, names in zip(entries, chosen, strict=True):
        config = peft.LoraConfig(
            r=entry.rank,
            # Annotated as int, but any number works.
            lora_alpha=entry.alpha,  # type: ignore[arg-type]
            lora_dropout=entry.dropout,
            target_modules="|".join(rf"model\.{re.escape(name)}" for name in names),
        )
        # A wrapper, because peft reads and writes attributes of its argument.
        holder = nn.Module()
        holder.model = model
        peft.inject_adapter_in_model(config, holder, UPDATE_NAME)
    for name, parameter in model.named_parameters():  # peft has frozen all of them
        if not is_lora(name):
            parameter.requires_grad_(trained.get(name, False))


def is_lora(parameter: str) -> bool:
    """Whether ``parameter`` names a part of an update."""
    return ".lora_A." in parameter or ".lora_B." in parameter


def is_adapted(parameter: str) -> bool:
    """Whether ``parameter`` names an adapted layer's original weight."""
    return ".base_layer." in parameter


def file_name(parameter: str) -> str:
    """Name of a parameter or buffer in files."""
    name = parameter.replace(".base_layer.", ".")
    return re.sub(rf"(\.lora_[AB])\.{UPDATE_NAME}\.", r"\1.", name)


def by_model_names(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a file, under the names that ``model`` has for them.

    Raises UserError where layers are adapted in the file that aren't in the model. ``source`` names
    the file.
    """
    own = {file_name(name): name for name in model.state_dict()}
    found = {own.get(name, name): tensor for name, tensor in state.items()}
    if unknown := sorted({_layer(n) for n in found if is_lora(f"{n}.") and n not in own.values()}):
        raise UserError(
            f"{source}: LoRA adapts {len(unknown)} layers in the file but not in the model: "
            f"{listed(unknown)}. Set {WHERE} as in the run that trained the file, or merge the "
            "file first (python -m lavis_ext.models.merge)."
        )
    return found


def new_updates(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names of the model's updates if ``state`` has none; they keep their initial values."""
    if any(is_lora(name) for name in state):
        return []
    return [name for name in model.state_dict() if is_lora(name)]


def merge(model: nn.Module) -> list[str]:
    """Add each update to its layer's weight and remove the wrappers, in place.

    Returns the merged weights' names.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    for name, layer in adapted:
        merging: Any = layer
        merging.merge(safe_merge=True)  # raises ValueError for non-finite weights
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, merging.get_base_layer())
    return [f"{name}.weight" for name, _ in adapted]


def merged(model: "TrainableModel", weights: "TrainedWeights") -> "TrainedWeights":
    """``weights`` with LoRA merged, for a config without ``model.lora``.

    ``model``, with the weights loaded, is merged in place.
    """
    loaded = model.own_names(weights, "weights")
    others = [file_name(name) for name in loaded if not is_lora(name)]
    names = dict.fromkeys([*others, *merge(model)])
    own = model.state_dict()
    config = copy.deepcopy(weights.config)
    config["model"].pop("lora", None)
    return replace(weights, state={name: own[name] for name in names}, config=config)


def _is_adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv2d)


def _matched(entry: LoraConfig, known: Sequence[str], where: str) -> list[str]:
    """Names of an entry's layers: matching ones, and those inside matching modules."""
    found: dict[str, None] = {}
    what, key = "linear or convolution layer", f"{where}.modules"
    for pattern in entry.modules:
        found |= dict.fromkeys(matching(pattern, known, what, key, inside=True))
    return list(found)


def _check_overlaps(
    entries: Sequence[LoraConfig], chosen: Sequence[Sequence[str]], where: str
) -> None:
    counts = Counter(name for names in chosen for name in names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        places = [f"{where}[{n}]" for n in range(len(entries)) if twice[0] in chosen[n]]
        raise UserError(
            f"{' and '.join(places)} both match {len(twice)} layer(s): {listed(twice)}. A layer "
            "may be in only one entry."
        )


def _check_tied(model: nn.Module, layers: Mapping[str, nn.Module], where: str) -> None:
    """Raise UserError for tied weights: merging an update would change the other layer too."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(map(id, weights.values()))
    for name in layers:
        weight = weights[f"{name}.weight"]
        if uses[id(weight)] > 1:
            other = next(n for n, w in weights.items() if w is weight and n != f"{name}.weight")
            raise UserError(
                f"{where}: the weight of {name} is tied to {other}, so it can't be adapted alone. "
                "Leave the layer out."
            )


def _layer(parameter: str) -> str:
    return re.split(r"\.lora_[AB]\.", parameter)[0]
