"""The image encoder of one of BLIP's generating models, as a stream of its own."""

from typing import Any

from torch import Tensor, nn

from lavis_ext.encoders.blip.encoder import BlipImageEncoder, BlipSizesConfig, check_image_size
from lavis_ext.encoders.blip.passes import encode_pixels


class BlipTower(BlipImageEncoder):
    """Image encoder of a captioner or an answerer. It shares that model's modules.

    Args:
        config: the model's sizes.
        normalize: its normalization of pixels.
        vision: its BlipVisionModel.
        picture: stream whose image it encodes.
    """

    def __init__(
        self, config: BlipSizesConfig, normalize: nn.Module, vision: nn.Module, picture: str
    ) -> None:
        super().__init__()
        self.config = config
        self.normalize = normalize
        self.vision: Any = vision
        self.picture = picture

    def fingerprint_options(self) -> dict[str, Any]:
        """Image size, heads and epsilon, which can differ between equal weights."""
        return {
            "image_size": self.config.image_size,
            "heads": self.config.vision_heads,
            "layer_norm_eps": self.vision.config.layer_norm_eps,
        }

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, 1+N, vision_width]: the class token, then the patches row by row.

        ``images`` [B, 3, image_size, image_size] are uint8 in 0..255 or floating point in [0, 1].
        Raises UserError for images of another size.
        """
        check_image_size(images, self.config)
        return encode_pixels(self.vision, self.normalize(images))
