"""Export a trained DIFNet as a checkpoint of its authors' code (mrwu-mac/DIFNet)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import written_aside
from lavis_ext.fusion.difnet import DifnetConfig
from lavis_ext.fusion.difnet_names import AUTHORS
from lavis_ext.fusion.network import FusionNetwork

AUTHORS_MODES = {"authors": "difnet", "authors_lrp": "difnet_lrp"}
"""Export targets, each with the authors' mode that reads it."""
UNREAD_NORMS = {
    "difnet": ("mhatt.layer_norm1", "lnorm1", "pwff.layer_norm1"),
    "difnet_lrp": ("lnorm1", "pwff.layer_norm1"),
}
"""Second-stream norms of each layer in the authors' modes, used or not."""


def authors_state(state: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    """A DIFNet encoder's state dict under the names of the authors' ``mode``.

    Norms that they create but never use have their initial values, ones and zeros.
    """
    layers = sorted({name.split(".")[1] for name in state}, key=int)
    found = {AUTHORS.to_theirs(name): tensor for name, tensor in state.items()}
    for layer in layers:
        like = state[f"layers.{layer}.lnorm.weight"]
        for norm in UNREAD_NORMS[mode]:
            name = f"encoder.layers.{layer}.{norm}"
            found.setdefault(f"{name}.weight", torch.ones_like(like))
            found.setdefault(f"{name}.bias", torch.zeros_like(like))
    return found


def save_for_authors(network: FusionNetwork, mode: str, path: Path) -> None:
    """Write the DIFNet in ``network`` as a checkpoint of the authors' ``mode``.

    Raises OSError if it can't be written, and UserError for another fusion or layers that the
    mode doesn't support: ``difnet_lrp`` is fixed to Lf 1 and T 2.
    """
    config = network.config
    if not isinstance(config, DifnetConfig):
        raise UserError(f"The fusion is {config.name}; only DIFNet can be exported to its authors.")
    if mode == "difnet_lrp" and (config.lf, config.t) != (1, 2):
        raise UserError(
            f"The fusion has lf {config.lf} and t {config.t}; the authors' mode difnet_lrp "
            "supports only lf 1 and t 2. Export to 'authors', their mode difnet."
        )
    state = {
        name: tensor.detach().cpu().clone()
        for name, tensor in authors_state(network.encoder.state_dict(), mode).items()
    }
    # Of a path that it can't open itself, torch raises RuntimeError instead of OSError.
    with written_aside(path) as aside, aside.open("wb") as file:
        torch.save({"state_dict": state}, file)
