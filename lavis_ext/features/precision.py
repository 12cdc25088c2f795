"""Compress tokens: smaller data types and pooling."""

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
    """Convert ``tokens`` [..., C] to a dtype of ``DTYPES``; int8 adds ``scales``, float32 [...].

    An int8 token is ``scale * values``, scaled so that its largest magnitude is 127. Raises
    ValueError for tokens that aren't finite before or after the conversion.
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
    """Bytes per token of ``width`` channels, including its scale."""
    scale = torch.float32.itemsize if dtype == "int8" else 0
    return width * DTYPES[dtype].itemsize + scale


def pooled(tokens: Tensor, grid: tuple[int, int], side: int, prefix: int) -> Tensor:
    """Average squares of ``side`` x ``side`` patches; the first ``prefix`` tokens are kept.

    ``tokens`` [B, P + h*w, C] are in row-major order on ``grid`` (h, w); ``side`` divides h and w.
    """
    if side == 1:
        return tokens
    patches = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
    means = F.avg_pool2d(patches, side).flatten(2).transpose(1, 2)
    return torch.cat((tokens[:, :prefix], means), dim=1)
