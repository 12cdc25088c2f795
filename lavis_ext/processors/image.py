"""The processor ``stream_images``: a picture to an image tensor for each visual stream."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2.functional import InterpolationMode, crop, pil_to_tensor, resize

from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed
from lavis_ext.registry import BaseProcessor, registry

ASPECTS = [3 / 4, 4 / 3]
"""Smallest and largest aspect ratio of a random crop."""


@dataclass
class StreamImagesConfig:
    """Options of ``stream_images``."""

    name: str = option("stream_images", "The processor's name in the registry.")
    sizes: dict[str, int] = option(
        dict, "Side in pixels of each stream's image; by default that of the model's encoder."
    )
    crop: float = option(
        1.0,
        "Smallest share of the picture's area in a random crop; 1 doesn't crop.",
        above=0,
        at_most=1,
    )
    jitter: float = option(
        0.0,
        "Largest random change of brightness, contrast and saturation, as a share.",
        at_least=0,
        at_most=1,
    )


@registry.register_processor("stream_images")
class StreamImagesProcessor(BaseProcessor):
    """Resizes a picture to the square image of each stream.

    Resizing ignores the aspect ratio. Pictures aren't mirrored and hues don't change, because GQA
    asks for left and right and for colors. Crops and jitter use torch's random generator. Pixels
    stay uint8, a quarter of float32's size to transfer; encoders normalize them on the device.
    """

    Config = StreamImagesConfig

    def __init__(self, config: StreamImagesConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, cfg: DictConfig | None = None) -> "StreamImagesProcessor":
        """Build from a section of LAVIS's ``vis_processor``; the defaults for None.

        Raises UserError for unknown options and wrong values.
        """
        return cls(typed(cls.Config, cfg or {}, "vis_processor"))

    def __call__(self, item: Image.Image) -> dict[str, torch.Tensor]:
        """Images by stream, uint8 [3, side, side], of an RGB picture."""
        pixels = self._augmented(pil_to_tensor(item))
        by_side = {side: square(pixels, side) for side in {*self.config.sizes.values()}}
        return {name: by_side[side] for name, side in self.config.sizes.items()}

    def facts(self) -> dict[str, Any]:
        """Options that change the images, for the keys of feature stores.

        Names and layout are those of early versions, so that their stores are found.
        """
        sizes = {f"{name}_size": side for name, side in self.config.sizes.items()}
        return {
            "name": "fusion_image",
            **sizes,
            "crop": self.config.crop,
            "jitter": self.config.jitter,
        }

    @property
    def random(self) -> bool:
        """Whether images of a picture differ between calls."""
        return self.config.crop < 1 or self.config.jitter > 0

    def _augmented(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.config.crop < 1:
            box = RandomResizedCrop.get_params(pixels, [self.config.crop, 1.0], ASPECTS)
            pixels = crop(pixels, *box)
        if self.config.jitter:
            share = self.config.jitter
            pixels = ColorJitter(brightness=share, contrast=share, saturation=share)(pixels)
        return pixels


def square(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Resize images [..., H, W] to [..., side, side], bicubic with antialiasing."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return resize(pixels, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True)
