"""EfficientSAM (Xiong et al., CVPR 2024): tokens of images, and masks from prompts.

Parameter names are those of the authors' checkpoints (``efficient_sam_vitt.pt``,
``efficient_sam_vits.pt``). The image encoder is in this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lavis_ext.checkpoints.reading import PretrainedConfig, load_pretrained
from lavis_ext.checkpoints.sources import WEIGHT_FILES
from lavis_ext.common.errors import UserError
from lavis_ext.config.schema import check, option
from lavis_ext.encoders.base import Encoder, EncoderConfig, Tokens
from lavis_ext.encoders.efficient_sam.mask_decoder import MaskDecoder, MaskPrediction
from lavis_ext.encoders.efficient_sam.prompt_encoder import PromptEncoder
from lavis_ext.encoders.pixels import PixelNormalization
from lavis_ext.registry import registry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PRETRAINING_SIDE = 224  # pixels; SAMI pretraining, whose position embeddings the checkpoints keep
AUTHORS_TINY = (
    "https://github.com/yformer/EfficientSAM/raw/d525f622e6f640acf5a0fc37c7ca1f243da5bde0/weights/"
    "efficient_sam_vitt.pt#gitsha1=af883c49e33c68f01107be52df0ecad26a48355f"
)


@dataclass
class EfficientSamConfig(PretrainedConfig, EncoderConfig):
    """Sizes and weights. The defaults are EfficientSAM-Ti; -S has width 384 and 6 heads."""

    encoder: str = option("efficient_sam", "The encoder's name in the registry.")
    image_size: int = option(
        384, "side of the input image in pixels, a multiple of patch_size", at_least=1
    )
    patch_size: int = option(16, "side of a patch in pixels", at_least=1)
    width: int = option(192, "width of the transformer", at_least=1)
    depth: int = option(12, "number of transformer blocks", at_least=1)
    heads: int = option(3, "attention heads; divides width", at_least=1)
    neck_width: int = option(
        256,
        "channels of the encoder's tokens, a multiple of twice decoder_heads",
        at_least=1,
    )
    max_points: int = option(
        6, "points and box corners of a query; fewer are padded, more are cut", at_least=1
    )
    decoder_depth: int = option(2, "two-way blocks of the mask decoder", at_least=1)
    decoder_heads: int = option(8, "attention heads of the mask decoder", at_least=1)
    decoder_mlp: int = option(2048, "inner width of its feed-forward layers", at_least=1)
    decoder_upscaling: list[int] = option(
        lambda: [64, 32], "channels after each doubling from the grid to the mask", at_least=1
    )
    multimask_outputs: int = option(3, "masks that the decoder predicts for a query", at_least=1)
    iou_head_depth: int = option(3, "linear layers of the head that predicts IoUs", at_least=2)
    iou_head_width: int = option(256, "inner width of that head", at_least=1)
    weights: str | None = option(
        AUTHORS_TINY,
        "local path or URL of a checkpoint; null starts from random weights",
        files=WEIGHT_FILES,
    )

    def check_together(self, where: str) -> None:
        """Raise UserError for inconsistent sizes."""
        if self.image_size % self.patch_size:
            raise UserError(
                f"{where}.image_size is {self.image_size}; it must be a multiple of "
                f"{where}.patch_size, which is {self.patch_size}."
            )
        if self.width % self.heads:
            raise UserError(f"{where}.heads is {self.heads}; it must divide width {self.width}.")
        if self.neck_width % (2 * self.decoder_heads):
            raise UserError(
                f"{where}.decoder_heads is {self.decoder_heads}; twice that must divide "
                f"neck_width {self.neck_width}, since the decoder halves it for attention."
            )
        if not self.decoder_upscaling:
            raise UserError(
                f"{where}.decoder_upscaling is empty; give the channels of at least one doubling."
            )


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to a map of tokens."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to a map [B, h, w, width]."""
        return self.proj(images).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Pre-norm ViT without a class token, then a convolutional neck."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        width, neck_width = config.width, config.neck_width
        self.pretraining_grid = PRETRAINING_SIDE // config.patch_size
        self.patch_embed = PatchEmbedding(config.patch_size, width)
        # Position 0 is in the checkpoints for the class token of pretraining, and never used.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.pretraining_grid**2, width))
        self.blocks = nn.ModuleList(
            Block(
                dim=width,
                num_heads=config.heads,
                mlp_ratio=4.0,
                qkv_bias=True,
                norm_layer=LayerNorm,  # timm's own, with eps 1e-6 as the authors have it
            )
            for _ in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, neck_width, kernel_size=1, bias=False),
            LayerNorm2d(neck_width, eps=1e-6),
            nn.Conv2d(neck_width, neck_width, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(neck_width, eps=1e-6),
        )
        self._initialize()

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] to an embedding [B, neck_width, h, w]."""
        tokens = self.patch_embed(images)
        height, width = tokens.shape[1:3]
        tokens = (tokens + self._positions(height, width)).flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2))

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings [1, height, width, C] for a grid, interpolated from pretraining's."""
        side = self.pretraining_grid
        positions = self.pos_embed[:, 1:].unflatten(1, (side, side))
        if (height, width) == (side, side):
            return positions
        resized = F.interpolate(
            positions.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False
        )
        return resized.permute(0, 2, 3, 1)

    def _initialize(self) -> None:
        """Initialization of ViT (Dosovitskiy et al., 2021), for training from scratch."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


@registry.register_encoder("efficient_sam")
class EfficientSam(Encoder):
    """EfficientSAM: ``encode`` once for each image, then ``predict_masks`` from its tokens.

    Children: ``image_encoder``, which alone computes the tokens, ``prompt_encoder`` and
    ``mask_decoder``.

    Raises UserError for inconsistent sizes, and for weights that can't be found, read or matched.
    """

    Config = EfficientSamConfig
    config: EfficientSamConfig

    def __init__(self, config: EfficientSamConfig, where: str = "efficient_sam") -> None:
        super().__init__()
        check(config, where)
        self.config = config
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config.neck_width, config.max_points)
        self.mask_decoder = MaskDecoder(
            config.neck_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            mlp=config.decoder_mlp,
            upscaling=config.decoder_upscaling,
            multimask_outputs=config.multimask_outputs,
            iou_head_depth=config.iou_head_depth,
            iou_head_width=config.iou_head_width,
        )
        self.load_report = load_pretrained(
            self, config, name="EfficientSAM", key=f"{where}.weights"
        )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.config.neck_width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens for an image of the configured size."""
        return self.grid_of(self.image_size, self.image_size)

    def token_modules(self) -> Sequence[nn.Module]:
        """Normalization and image encoder."""
        return self.normalize, self.image_encoder

    def fingerprint_options(self) -> dict[str, Any]:
        """Image size and heads, which can differ between equal weights."""
        return {"image_size": self.config.image_size, "heads": self.config.heads}

    def compile_parts(self, **options: Any) -> None:
        """Compile the image encoder, with options of ``torch.compile``."""
        self.image_encoder.compile(**options)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of ``height`` x ``width`` pixels.

        Raises UserError for sides that aren't multiples of the patch size.
        """
        patch = self.config.patch_size
        if height % patch or width % patch or not height or not width:
            raise UserError(
                f"EfficientSAM got an image of {height}x{width} pixels; both sides must be "
                f"multiples of {patch}. Set the image size of its processor accordingly."
            )
        return height // patch, width // patch

    def forward(self, images: Tensor) -> Tokens:
        """Tokens with the layout of images of this size."""
        return Tokens(self.encode(images), self.grid_of(*images.shape[-2:]), 0)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, h*w, neck_width], row by row of the grid.

        ``images`` [B, 3, H, W] are uint8 in 0..255 or floating point in [0, 1]; H and W are any
        multiples of the patch size, and ``grid_of(H, W)`` gives (h, w).
        """
        self.grid_of(*images.shape[-2:])
        embedding = self.image_encoder(self.normalize(images))
        return embedding.flatten(2).transpose(1, 2)

    def predict_masks(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        image_size: tuple[int, int],
        points: Tensor,
        labels: Tensor,
        image_index: Tensor,
    ) -> MaskPrediction:
        """Masks of Q queries, each about one of I encoded images.

        Args:
            tokens: output of ``encode``, [I, h*w, neck_width].
            grid: (h, w).
            image_size: height and width of the encoded images in pixels.
            points: (x, y) [Q, P, 2] in pixels of the encoded image, from the top left. The authors'
                code rescales images and points to a fixed square; here neither is resized.
            labels: integers [Q, P]: 1 a point on the object, 2 and 3 the top left and bottom right
                corner of a box, -1 padding, whatever its point. Only the first ``max_points`` are
                used, as in the authors' code.
            image_index: int64 [Q], the image that each query is about.

        Returns:
            Logits [Q, multimask_outputs, H', W'] and predicted IoUs [Q, multimask_outputs]. With
            the authors' sizes H' x W' is 4h x 4w: a pixel of the mask is 4 pixels of the image.

        Raises UserError for any other label.
        """
        return self.mask_decoder(
            tokens[image_index],
            self.prompt_encoder.grid_positions(grid),
            self.prompt_encoder(points, labels, image_size),
            grid,
        )
