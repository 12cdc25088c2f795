"""What an encoder is: pictures in, tokens out.

B pictures of S x S pixels, a grid of h x w patches, P prefix tokens (such as a class token) before
them, D channels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lavis_ext.checkpoints.weights import LoadReport
from lavis_ext.config.schema import option


class Tokens(NamedTuple):
    """An encoder's output."""

    values: Tensor
    """[B, P + h*w, D], the patches row by row."""
    grid: tuple[int, int]
    """(h, w)."""
    prefix: int
    """P."""


@dataclass
class EncoderConfig:
    """Options that every encoder has."""

    encoder: str = option("", "The encoder's name in the registry.")
    image_size: int = option(384, "Side of the input image in pixels.", at_least=1)
    weights: str | None = option(None, "What it starts from; null is random weights.")


class Encoder(nn.Module, ABC):
    """Register a subclass with ``registry.register_encoder`` and name it in ``model.streams``.

    The constructor takes the config and ``where``, the config's key for errors.

    Class attributes:
        Config: its options, a dataclass that extends EncoderConfig.

    Attributes:
        load_report: what was loaded; None for random weights.
    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig
    config: Any
    load_report: LoadReport | None = None

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

        Normalization is the encoder's own. Raises UserError for images of a size it can't take.
        """

    def forward(self, images: Tensor) -> Tokens:
        """Tokens with their layout."""
        return Tokens(self.encode(images), self.grid, self.prefix)

    def token_modules(self) -> Sequence[nn.Module]:
        """The modules that tokens are computed by, for the fingerprint and for freezing."""
        return [self]

    def fingerprint_options(self) -> dict[str, Any]:
        """What changes the tokens and can't be seen in the weights, by name."""
        return {"image_size": self.image_size}

    def compile_parts(self, **options: Any) -> None:
        """Compile what images pass, with options of ``torch.compile``."""
        self.compile(**options)

    def fingerprint(self) -> str:
        """A hash of all parameters and buffers: names, shapes, dtypes and contents.

        Without the contents where they are on torch's device ``meta``.
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
        """Whether any parameter that tokens depend on is to be trained."""
        return any(p.requires_grad for part in self.token_modules() for p in part.parameters())
