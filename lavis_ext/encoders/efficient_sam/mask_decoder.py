"""EfficientSAM's mask decoder: image tokens and prompt tokens to masks and how good they are.

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
    """The masks that a query may mean, in no order: ``best_mask`` picks one."""

    logits: Tensor
    """float [Q, M, H', W'], above 0 where the object is; a few pixels for each cell of the grid."""
    predicted_iou: Tensor
    """float [Q, M], the decoder's own estimate of each mask's IoU. Not bounded to 0..1."""


def best_mask(prediction: MaskPrediction) -> tuple[Tensor, Tensor]:
    """Of each query, the logits [Q, H', W'] of the mask with the highest predicted IoU, and it [Q].

    Of equal ones it is the first.
    """
    best = prediction.predicted_iou.argmax(dim=1)
    query = torch.arange(len(best), device=best.device)
    return prediction.logits[query, best], prediction.predicted_iou[query, best]


class MaskDecoder(nn.Module):
    """A two-way transformer, an upscaled image, and for each mask a filter over its channels.

    Args:
        width: channels of a token, a multiple of ``2 * heads``.
        depth, heads, mlp: of the transformer; ``mlp`` is its feed-forward layers' inner width.
        upscaling: channels after each doubling of the grid.
        multimask_outputs: masks of a query. With more than one there is another mask token, for
            SAM's single mask, which takes part in attention but is not read: EfficientSAM always
            gives several masks where it was trained to.
        iou_head_depth, iou_head_width: linear layers, and inner width, of the head for IoUs.
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
            image: tokens [Q, h*w, C] of each query's image, row by row.
            positions: position features [h*w, C] of those tokens.
            prompts: tokens [Q, T, C].
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
