"""The model ``efficient_sam_pretraining``: masks of prompted objects."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.encoders.efficient_sam.encoder import EfficientSam, EfficientSamConfig
from lavis_ext.models.base import StepOutput
from lavis_ext.pretraining.base import PretrainingConfig, PretrainingModel, step_output
from lavis_ext.pretraining.mask_data import MaskSamples
from lavis_ext.registry import registry


@dataclass
class EfficientSamPretrainingConfig(PretrainingConfig):
    """Options of ``efficient_sam_pretraining``."""

    efficient_sam: Any = option(dict, "EfficientSAM (EfficientSamConfig).")

    parts = {"efficient_sam": EfficientSamConfig}


@registry.register_model("efficient_sam_pretraining")
class EfficientSamPretraining(PretrainingModel):
    """Masks of objects prompted by points or boxes (Xiong et al., 2024; Kirillov et al., 2023).

    The loss of a mask is cross-entropy, Dice loss and the squared error of its predicted IoU. The
    objects of mini-GQA have no parts, so a prompt is unambiguous and all of the decoder's masks
    have the same target.
    """

    Config = EfficientSamPretrainingConfig
    shipped = {"efficient_sam.": "efficient_sam.safetensors"}
    reported = (Metric("mask_iou", "share"),)

    def __init__(self, config: EfficientSamPretrainingConfig) -> None:
        super().__init__()
        self.efficient_sam = EfficientSam(config.efficient_sam, "model.efficient_sam")

    def forward(self, samples: MaskSamples) -> StepOutput:
        """Sums of the loss and of the predicted best mask's IoU over a batch of images."""
        images = samples["image"]
        size = (images.shape[-2], images.shape[-1])
        predicted = self.efficient_sam.predict_masks(
            self.efficient_sam.encode(images),
            self.efficient_sam.grid_of(*size),
            size,
            samples["points"],
            samples["labels"],
            samples["image_index"],
        )
        target = F.interpolate(samples["masks"][:, None], predicted.logits.shape[-2:], mode="area")
        iou = mask_iou(predicted.logits.detach() > 0, target > 0.5)
        losses = (
            F.binary_cross_entropy_with_logits(
                predicted.logits, target.expand_as(predicted.logits), reduction="none"
            ).mean(dim=(-2, -1))
            + dice_loss(predicted.logits.sigmoid(), target)
            + (predicted.predicted_iou - iou) ** 2
        ).mean(dim=1)
        best = iou.gather(1, predicted.predicted_iou.argmax(dim=1, keepdim=True))
        return step_output(
            losses.view(len(images), -1).mean(dim=1),
            {"mask_iou": best.view(len(images), -1).mean(dim=1).sum()},
        )


def mask_iou(masks: Tensor, target: Tensor) -> Tensor:
    """Intersection over union [...] of boolean masks [..., H, W], 0 where both are empty."""
    union = (masks | target).sum(dim=(-2, -1))
    return (masks & target).sum(dim=(-2, -1)) / union.clamp(min=1)


def dice_loss(masks: Tensor, target: Tensor) -> Tensor:
    """1 minus the Dice coefficient [...] of masks [..., H, W] in 0..1 (Milletari et al., 2016)."""
    overlap = 2 * (masks * target).sum(dim=(-2, -1))
    return 1 - (overlap + 1) / (masks.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)
