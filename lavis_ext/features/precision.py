"""Tokens in fewer bytes: smaller numbers, and fewer of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
}
LARGEST_INT8 = 127


def compressed(tokens: Tensor, dtype: str) -> dict[str, Tensor]:
    """``tokens`` [..., C] in a dtype of ``DTYPES``, and for int8 ``scales``, float32 [...].

    A token is ``scale * numbers``; its scale makes its largest number 127. Raises ValueError for
    tokens that aren't finite, or aren't any more.
    """
    tokens = tokens.float()
    if dtype == "int8":
        scales = tokens.abs().amax(dim=-1) / LARGEST_INT8
        numbers = tokens / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        found = {"tokens": numbers.round().to(torch.int8), "scales": scales}
    else:
        found = {"tokens": tokens.to(DTYPES[dtype])}
    if not all(each.isfinite().all() for each in (tokens, *found.values())):
        raise ValueError(f"tokens up to {tokens.abs().amax():.3g} are not finite as {dtype}")
    return found


def bytes_a_token(width: int, dtype: str) -> int:
    """Bytes of a token of ``width`` channels, with its scale."""
    scale = torch.float32.itemsize if dtype == "int8" else 0
    return width * DTYPES[dtype].itemsize + scale


def pooled(tokens: Tensor, grid: tuple[int, int], side: int, prefix: int) -> Tensor:
    """Means of squares of ``side`` x ``side`` patches; the ``prefix`` tokens before them stay.

    ``tokens`` [B, P + h*w, C] lie row by row on ``grid`` (h, w), whose sides ``side`` divides.
    """
    if side == 1:
        return tokens
    patches = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
    means = F.avg_pool2d(patches, side).flatten(2).transpose(1, 2)
    return torch.cat((tokens[:, :prefix], means), dim=1)
