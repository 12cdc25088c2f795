"""The image processor: one picture, one tensor for each visual stream."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, pil_to_tensor, resize

from lavis_ext.config.schema import option
from lavis_ext.config.typed import typed
from lavis_ext.door import BaseProcessor, registry


@dataclass
class FusionImageConfig:
    """Options of ``fusion_image``."""

    name: str = option("fusion_image", "The processor's name in the registry.")
    grid_size: int = option(384, "Side in pixels of BLIP's image.", at_least=1)
    segmentation_size: int = option(384, "Side in pixels of EfficientSAM's image.", at_least=1)


@registry.register_processor("fusion_image")
class FusionImageProcessor(BaseProcessor):
    """Resizes a picture to the square image of each stream.

    The whole picture is kept (BLIP and EfficientSAM both squash it to a square), and nothing is
    mirrored: GQA asks for left and right. Pixels stay 8-bit, so that a batch is a quarter of its
    size on the way to the device; each encoder normalises its own.
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
        pixels = pil_to_tensor(item)
        grid = _square(pixels, self.config.grid_size)
        same = self.config.segmentation_size == self.config.grid_size
        segmentation = grid if same else _square(pixels, self.config.segmentation_size)
        return {"grid_image": grid, "segmentation_image": segmentation}


def _square(pixels: torch.Tensor, side: int) -> torch.Tensor:
    return resize(pixels, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True)
