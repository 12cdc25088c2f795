"""Pixel normalization with the statistics of encoders' pretraining."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PixelNormalization(nn.Module):
    """``(image - mean) / std`` per channel, on the images' device.

    Images [B, 3, H, W] are uint8 in 0..255 or floating point in [0, 1]; the result is in the dtype
    of the module (float32 unless it was converted). The state dict is empty.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W]. Raises TypeError for integers other than uint8."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        elif not images.is_floating_point():
            raise TypeError(f"images are {images.dtype}; uint8 or floating point is expected")
        return (images.to(self.mean.dtype) - self.mean) / self.std
