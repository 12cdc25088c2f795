"""A visual stream as the store sees it: an encoder, and what tells it from others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageStream:
    """One encoder of a model.

    Attributes:
        name: ``grid`` or ``segmentation``; a processor's image is ``<name>_image``.
        parts: the modules that the tokens are computed by.
        encode: images uint8 [B, 3, S, S] to tokens [B, T, C].
        grid: rows and columns of patches.
        class_token: whether a class token comes before the patches.
        width: channels C.
        options: what else changes the tokens and can't be seen in the weights, by name.
    """

    name: str
    parts: Sequence[nn.Module]
    encode: Callable[[Tensor], Tensor]
    grid: tuple[int, int]
    class_token: bool
    width: int
    options: dict[str, int]

    def weights_digest(self) -> str:
        """A hash of all parameters and buffers: names, shapes, dtypes and contents.

        Without the contents where they are on torch's device ``meta``.
        """
        digest = hashlib.blake2b(digest_size=16)
        for place, part in enumerate(self.parts):
            for name, tensor in sorted(chain(part.named_parameters(), part.named_buffers())):
                digest.update(f"{place} {name} {tensor.dtype} {[*tensor.shape]}\n".encode())
                if not tensor.is_meta:
                    contents = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    digest.update(contents.numpy().data)
        return digest.hexdigest()

    def trained(self) -> bool:
        """Whether any of the encoder's parameters are to be trained."""
        return any(p.requires_grad for part in self.parts for p in part.parameters())
