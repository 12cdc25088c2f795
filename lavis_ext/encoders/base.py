"""Interface of encoders, which turn pictures into tokens.

B pictures of S x S pixels, a grid of h x w patches, P prefix tokens (such as a class token) before
them, D channels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.config.schema import option


class Tokens(NamedTuple):
    """An encoder's output."""

    values: Tensor
    """[B, P + h*w, D], patches in row-major order."""
    grid: tuple[int, int]
    """(h, w)."""
    prefix: int
    """P."""


@dataclass
class EncoderConfig:
    """Common options of encoders."""

    encoder: str = option("", "The encoder's name in the registry.")
    image_size: int = option(384, "Side of the input image in pixels.", at_least=1)
    weights: str | None = option(
        None, "Pretrained checkpoint; null is random weights.", files=WEIGHT_FILES
    )

    def unloaded(self) -> Self:
        """The config of the same encoder with random weights, for which nothing is downloaded."""
        return replace(self, weights=None)


class Encoder(nn.Module, ABC):
    """Base of encoders. Register a subclass with ``registry.register_encoder``; use it in a stream.

    The constructor takes the config and ``where``, its config key for error messages.

    Class attributes:
        Config: dataclass of its options, a subclass of EncoderConfig.

    Attributes:
        load_report: result of loading ``weights``; None for random weights.
        picture: stream whose image it encodes; None for that of its own stream.
    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig
    config: Any
    load_report: LoadReport | None = None
    picture: str | None = None

    @property
    def image_size(self) -> int:
        """S."""
        return int(self.config.image_size)

    @property
    @abstractmethod
    def width(self) -> int:
        """D."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(h, w) of an image of the configured size."""

    @property
    def prefix(self) -> int:
        """P."""
        return 0

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, P + h*w, D] of images [B, 3, S, S], uint8 in 0..255 or float in [0, 1].

        Encoders normalize images themselves. Raises UserError for an unsupported image size.
        """

    def forward(self, images: Tensor) -> Tokens:
        """Tokens with their layout."""
        return Tokens(self.encode(images), self.grid, self.prefix)

    def token_modules(self) -> Sequence[nn.Module]:
        """Modules that compute tokens, for the fingerprint and for freezing."""
        return [self]

    def fingerprint_options(self) -> dict[str, Any]:
        """Options that affect tokens but no weights, by name."""
        return {"image_size": self.image_size}

    def compile_parts(self, **options: Any) -> None:
        """Compile the modules that compute tokens; ``options`` are those of ``torch.compile``."""
        self.compile(**options)

    def fingerprint(self) -> str:
        """Hash of names, shapes, dtypes and contents of all parameters and buffers.

        Contents are left out on the ``meta`` device.
        """
        digest = hashlib.blake2b(digest_size=16)
        for place, part in enumerate(self.token_modules()):
            for name, tensor in sorted(chain(part.named_parameters(), part.named_buffers())):
                digest.update(f"{place} {name} {tensor.dtype} {[*tensor.shape]}\n".encode())
                if not tensor.is_meta:
                    contents = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    digest.update(contents.numpy().data)
        return digest.hexdigest()

    def trained(self) -> bool:
        """Whether any parameter that affects tokens requires a gradient."""
        return any(p.requires_grad for part in self.token_modules() for p in part.parameters())
