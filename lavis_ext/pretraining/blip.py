"""The model ``blip_pretraining``: patch labeling, question matching and captioning."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.decoders.blip_captioner import BlipCaptioner, CaptionerConfig
from lavis_ext.encoders.blip.encoder import BlipEncoder, BlipEncoderConfig
from lavis_ext.models.base import StepOutput
from lavis_ext.objectives.matching import MATCH
from lavis_ext.pretraining.base import PretrainingConfig, PretrainingModel, step_output
from lavis_ext.pretraining.description_data import LABELS, NO_LABEL, DescriptionSamples
from lavis_ext.registry import registry


@dataclass
class BlipPretrainingConfig(PretrainingConfig):
    """Options of ``blip_pretraining``."""

    blip: Any = option(dict, "BLIP (BlipEncoderConfig).")
    captioner: Any = option(dict, "The captioner (CaptionerConfig).")
    labelling_weight: float = option(
        0.0, "Weight of the loss of patch labels. A loss of weight 0 isn't computed.", at_least=0
    )
    captioning_weight: float = option(1.0, "Weight of the captioning loss.", at_least=0)
    matching_weight: float = option(1.0, "Weight of the matching loss.", at_least=0)
    share_text_layers: bool = option(
        True, "Share the layers of text encoder and decoder, except self-attention, as BLIP does."
    )

    parts = {"blip": BlipEncoderConfig, "captioner": CaptionerConfig}


@registry.register_model("blip_pretraining")
class BlipPretraining(PretrainingModel):
    """Captioning and question matching with one image encoder (Li et al., 2022, section 3.2).

    Matching profits from the cross-attention that captioning learns, so recipes share the text
    layers at first and separate them later. A random image encoder learns far more from a label for
    each patch than from a sentence for an image (Jiang et al., "All Tokens Matter", NeurIPS 2021),
    so recipes begin with patch labels.
    """

    Config = BlipPretrainingConfig
    shipped = {
        "blip.blip.": "blip_question_matching.safetensors",
        "captioner.blip.": "blip_captioning.safetensors",
    }

    def __init__(self, config: BlipPretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.blip = BlipEncoder(config.blip, "model.blip")
        self.captioner = BlipCaptioner(config.captioner)
        shapes = [
            [tensor.shape for tensor in part.blip.vision_model.state_dict().values()]
            for part in (self.blip, self.captioner)
        ]
        if shapes[0] != shapes[1]:
            raise UserError("model.captioner: its image encoder differs from model.blip's.")
        self.captioner.blip.vision_model = self.blip.blip.vision_model
        if config.share_text_layers:
            self._share_text_layers()
        self.labels = nn.ModuleDict(
            {key: nn.Linear(self.blip.width, len(values)) for key, values in LABELS.items()}
        )
        self._losses = {
            "labelling": (config.labelling_weight, self._labelling),
            "captioning": (config.captioning_weight, self._captioning),
            "matching": (config.matching_weight, self._matching),
        }

    @property
    def metrics(self) -> list[Metric]:
        """Losses with a weight above 0, and the accuracies of labeling and matching."""
        given = [name for name, (weight, _) in self._losses.items() if weight > 0]
        rates = [Metric(f"{name}_accuracy", "share") for name in given if name != "captioning"]
        return [*(Metric(f"{name}_loss", better="min") for name in given), *rates]

    def forward(self, samples: DescriptionSamples) -> StepOutput:
        """Sums of the loss and of metrics over a batch of images."""
        tokens = self.blip.encode(samples["image"])
        total = tokens.new_zeros(len(tokens))
        report = {}
        for name, (weight, loss_of) in self._losses.items():
            if weight > 0:
                losses, right = loss_of(tokens, samples)
                total = total + weight * losses
                report[f"{name}_loss"] = losses.detach().sum()
                if right is not None:
                    report[f"{name}_accuracy"] = right.sum()
        return step_output(total, report)

    def _labelling(self, tokens: Tensor, samples: DescriptionSamples) -> tuple[Tensor, Tensor]:
        """Loss [B], a mean over patches summed over labels, and share of correct labels [B]."""
        total, right = tokens.new_zeros(len(tokens)), tokens.new_zeros(len(tokens))
        for place, head in enumerate(self.labels.values()):
            labels = samples["patch_labels"][..., place]
            scores = head(tokens[:, 1:]).transpose(1, 2)
            losses = F.cross_entropy(scores, labels, ignore_index=NO_LABEL, reduction="none")
            counted = (labels != NO_LABEL).sum(dim=1).clamp(min=1)
            total = total + losses.sum(dim=1) / counted
            hits = (scores.detach().argmax(dim=1) == labels).sum(dim=1) / counted
            right = right + hits / len(LABELS)
        return total, right

    def _captioning(self, tokens: Tensor, samples: DescriptionSamples) -> tuple[Tensor, None]:
        """Mean loss over each image's captions [B]."""
        images = len(tokens)
        patches = tokens[:, 1:].repeat_interleave(len(samples["captions"]) // images, dim=0)
        losses = self.captioner.loss(patches, samples["captions"], samples["patch_mask"])
        return losses.view(images, -1).mean(dim=1), None

    def _share_text_layers(self) -> None:
        encoder = self.blip.blip.text_encoder
        decoder = self.captioner.blip.text_decoder.bert
        encoder.embeddings = decoder.embeddings
        for own, other in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
            for shared in ("crossattention", "intermediate", "output"):
                setattr(own, shared, getattr(other, shared))

    def _matching(self, tokens: Tensor, samples: DescriptionSamples) -> tuple[Tensor, Tensor]:
        """Mean loss over each image's texts [B], and share of correctly matched texts [B]."""
        images = len(tokens)
        texts = len(samples["texts"]) // images
        packed = self.blip.pack(
            samples["texts"], torch.arange(images).repeat_interleave(texts), images
        )
        # The first token is the class token, which is never masked.
        token_mask = F.pad(samples["text_patch_mask"], (1, 0), value=True)
        scores = self.blip.match(tokens, packed, token_mask=token_mask)
        labels = torch.full((images, texts), 1 - MATCH, device=scores.device)
        labels[:, : texts // 2] = MATCH
        losses = F.cross_entropy(scores, labels.flatten(), reduction="none")
        right = (scores.detach().argmax(dim=-1).view(images, -1) == labels).float()
        return losses.view(images, -1).mean(dim=1), right.mean(dim=1)
