"""Patches for captions, sampled by heat (PNP-VQA, Tiong et al. 2022, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import option
from lavis_ext.decoders.keyed_noise import fold_in, gumbel

# Below the logarithm of any positive float, but small enough that noise matters in float64.
LOG_OF_NO_HEAT = -1e4


@dataclass
class PatchConfig:
    """Number and choice of a caption's patches."""

    num_patches: int = option(
        20, "patches sampled for each caption; without effect if choose is all", at_least=1
    )
    choose: str = option(
        "guided",
        "guided by the question's heat map, uniform over the image, or all patches",
        choices=("guided", "uniform", "all"),
    )


def check_heat(heat: Tensor, question_ids: Sequence[str], config: PatchConfig, where: str) -> None:
    """Raise UserError for heat maps [Q, N] from which patches can't be sampled.

    These have negative or non-finite values (the question is named) or fewer patches than
    ``num_patches``. ``where`` is the key of ``config``.
    """
    patches = heat.shape[1]
    if config.choose != "all" and config.num_patches > patches:
        raise UserError(
            f"{where}.num_patches is {config.num_patches}, but an image has only {patches} "
            f"patches. Lower it, or set {where}.choose to all."
        )
    wrong = (~torch.isfinite(heat) | (heat < 0)).any(dim=1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        values = heat[row]
        kind = "negative" if bool(torch.isfinite(values).all()) else "not finite"
        raise UserError(
            f"The heat map of question {question_ids[row]} has values that are {kind}. Check the "
            "weights of the fusion and of question matching, and clip heat at 0."
        )


def draw_patches(heat: Tensor, keys: Tensor, config: PatchConfig) -> Tensor:
    """Indices of patches, int64 [..., P] in 0..N-1, ascending, sampled without replacement.

    Each key samples its own, in proportion to the remaining heat (LAVIS, pnp_vqa.py: one
    torch.multinomial for each caption). Patches with zero heat come after all others; a map of
    zeros is uniform. P is ``num_patches``, or N if all patches are chosen.

    Args:
        heat: heat maps, float [..., N], that pass ``check_heat``.
        keys: int64 [...], see keyed_noise; broadcast with the leading dimensions of ``heat``.
        config: number and choice of patches.
    """
    columns = torch.arange(heat.shape[-1], device=heat.device)
    if config.choose == "all":
        shape = torch.broadcast_shapes(heat.shape[:-1], keys.shape)
        return columns.expand(*shape, -1)
    noise = gumbel(fold_in(keys.unsqueeze(-1), columns))
    if config.choose == "guided":
        heat = heat.double()
        noise = noise + torch.where(heat > 0, heat.log(), LOG_OF_NO_HEAT)
    else:
        noise, _ = torch.broadcast_tensors(noise, heat)
    return noise.topk(config.num_patches, dim=-1).indices.sort(dim=-1).values
