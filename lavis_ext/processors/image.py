"""The image processor: one picture, one tensor for each visual stream."""

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
"""Least and largest ratio of a random crop's sides."""


@dataclass
class StreamImagesConfig:
    """Options of ``stream_images``."""

    name: str = option("stream_images", "The processor's name in the registry.")
    sizes: dict[str, int] = option(
        dict, "Side in pixels of each stream's image; by default what the model's encoders take."
    )
    crop: float = option(
        1.0,
        "Least share of the picture's area that a random crop keeps; 1 crops nothing.",
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

    The whole picture is kept (encoders squash it to a square) unless ``crop``
    says otherwise, and nothing is mirrored: GQA asks for left and right. Nor do hues change: it
    asks for colours. Crops and jitter are drawn by torch's random numbers. Pixels stay 8-bit, so
    that a batch is a quarter of its size on the way to the device; each encoder normalizes its own.
    """

    Config = StreamImagesConfig

    def __init__(self, config: StreamImagesConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, cfg: DictConfig | None = None) -> "StreamImagesProcessor":
        """Build from a LAVIS processor section, or with the defaults."""
        return cls(typed(cls.Config, cfg or {}, "vis_processor"))

    def __call__(self, item: Image.Image) -> dict[str, torch.Tensor]:
        """An image for each stream, uint8 [3, side, side], of an RGB picture."""
        pixels = self._augmented(pil_to_tensor(item))
        by_side = {side: square(pixels, side) for side in {*self.config.sizes.values()}}
        return {name: by_side[side] for name, side in self.config.sizes.items()}

    def facts(self) -> dict[str, Any]:
        """What tells prepared images from others, as the feature store's keys have it.

        Names and layout are those of the first stores, so that these are still found.
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
        """Whether the same picture gives another image every time."""
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
    """Images [..., H, W] as squares; those that are so large already stay as they are."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return resize(pixels, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True)
