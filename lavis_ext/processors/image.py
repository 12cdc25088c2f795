"""The image processor: one picture, one tensor for each visual stream."""

from dataclasses import dataclass

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
class FusionImageConfig:
    """Options of ``fusion_image``."""

    name: str = option("fusion_image", "The processor's name in the registry.")
    grid_size: int = option(384, "Side in pixels of BLIP's image.", at_least=1)
    segmentation_size: int = option(384, "Side in pixels of EfficientSAM's image.", at_least=1)
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


@registry.register_processor("fusion_image")
class FusionImageProcessor(BaseProcessor):
    """Resizes a picture to the square image of each stream.

    The whole picture is kept (BLIP and EfficientSAM both squash it to a square) unless ``crop``
    says otherwise, and nothing is mirrored: GQA asks for left and right. Nor do hues change: it
    asks for colours. Crops and jitter are drawn by torch's random numbers. Pixels stay 8-bit, so
    that a batch is a quarter of its size on the way to the device; each encoder normalises its own.
    """

    Config = FusionImageConfig

    def __init__(self, config: FusionImageConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, cfg: DictConfig | None = None) -> "FusionImageProcessor":
        """Build from a LAVIS processor section, or with the defaults."""
        return cls(typed(cls.Config, cfg or {}, "vis_processor"))

    def __call__(self, item: Image.Image) -> dict[str, torch.Tensor]:
        """``{"grid_image", "segmentation_image"}``, each uint8 [3, side, side], of an RGB image."""
        pixels = self._augmented(pil_to_tensor(item))
        grid = _square(pixels, self.config.grid_size)
        same = self.config.segmentation_size == self.config.grid_size
        segmentation = grid if same else _square(pixels, self.config.segmentation_size)
        return {"grid_image": grid, "segmentation_image": segmentation}

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


def _square(pixels: torch.Tensor, side: int) -> torch.Tensor:
    return resize(pixels, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True)
