"""EfficientSAM's mask decoder: image and prompt tokens to masks and their predicted IoUs.

Xiong et al., CVPR 2024, after SAM (Kirillov et al., ICCV 2023, appendix A). Parameter names are
those of the authors' checkpoints.

Shapes: Q queries, M masks of a query, T prompt tokens, C width, h x w grid, H' x W' mask.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lavis_ext.encoders.efficient_sam.two_way_transformer import Perceptron, TwoWayTransformer


class MaskPrediction(NamedTuple):
    """Candidate masks of each query, unordered; ``best_mask`` picks one."""

    logits: Tensor
    """float [Q, M, H', W'], above 0 on the object, at a multiple of the grid's resolution."""
    predicted_iou: Tensor
    """float [Q, M], the decoder's estimate of each mask's IoU. Not limited to 0..1."""


def best_mask(prediction: MaskPrediction) -> tuple[Tensor, Tensor]:
    """Logits [Q, H', W'] of each query's mask with the highest predicted IoU, and that IoU [Q].

    Among equal ones, the first mask.
    """
    best = prediction.predicted_iou.argmax(dim=1)
    query = torch.arange(len(best), device=best.device)
    return prediction.logits[query, best], prediction.predicted_iou[query, best]


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling of the image tokens, and a channel filter for each mask.

    Args:
        width: channels of a token, a multiple of ``2 * heads``.
        depth, heads, mlp: blocks, heads and inner feed-forward width of the transformer.
        upscaling: channels after each doubling of the grid.
        multimask_outputs: masks of a query. With more than one there is an extra mask token, for
            SAM's single mask. It takes part in attention but isn't read: EfficientSAM trained for
            several masks always predicts several.
        iou_head_depth, iou_head_width: linear layers and inner width of the IoU head.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        heads: int,
        mlp: int,
        upscaling: Sequence[int],
        multimask_outputs: int,
        iou_head_depth: int,
        iou_head_width: int,
    ) -> None:
        super().__init__()
        self.unread = 1 if multimask_outputs > 1 else 0
        masks = self.unread + multimask_outputs
        self.transformer = TwoWayTransformer(width, depth, heads, mlp)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(masks, width)
        self.final_output_upscaling_layers = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(before, after, kernel_size=2, stride=2),
                nn.Identity() if doubling == len(upscaling) else nn.GroupNorm(1, after),
                nn.GELU(),
            )
            for doubling, (before, after) in enumerate(
                zip([width, *upscaling[:-1]], upscaling, strict=True), start=1
            )
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(width, width, upscaling[-1], hidden=2) for _ in range(masks)
        )
        self.iou_prediction_head = Perceptron(
            width, iou_head_width, masks, hidden=iou_head_depth - 1
        )

    def forward(
        self, image: Tensor, positions: Tensor, prompts: Tensor, grid: tuple[int, int]
    ) -> MaskPrediction:
        """Masks of each query.

        Args:
            image: image tokens [Q, h*w, C] for each query, row by row.
            positions: position features [h*w, C] of the image tokens.
            prompts: prompt tokens [Q, T, C].
            grid: (h, w).

        The logits are [Q, multimask_outputs, h * s, w * s] with s = 2 ** len(upscaling).
        """
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([learned.expand(len(prompts), -1, -1), prompts], dim=1)
        tokens, image = self.transformer(tokens, image, positions)

        upscaled = image.transpose(1, 2).unflatten(2, grid)
        for layer in self.final_output_upscaling_layers:
            upscaled = layer(upscaled)
        filters = torch.stack(
            [
                network(tokens[:, 1 + index])
                for index, network in enumerate(self.output_hypernetworks_mlps)
                if index >= self.unread
            ],
            dim=1,
        )
        logits = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return MaskPrediction(logits, self.iou_prediction_head(tokens[:, 0])[:, self.unread :])
