"""The model ``blip_pretraining``: question matching and captioning."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lavis_ext.config.schema import option
from lavis_ext.door import registry
from lavis_ext.encoders.blip import BlipEncoder, BlipEncoderConfig
from lavis_ext.errors import UserError
from lavis_ext.objectives.matching import MATCH
from lavis_ext.pipeline.captioner import BlipCaptioner, CaptionerConfig
from lavis_ext.pretraining.base import PretrainingConfig, PretrainingModel
from lavis_ext.pretraining.datasets import DescriptionSamples


@dataclass
class BlipPretrainingConfig(PretrainingConfig):
    """Options of ``blip_pretraining``."""

    blip: Any = option(dict, "BLIP (BlipEncoderConfig).")
    captioner: Any = option(dict, "The captioner (CaptionerConfig).")
    matching_weight: float = option(1.0, "Weight of the matching loss.", at_least=0)
    share_text_layers: bool = option(
        True, "Text encoder and decoder are one but for self-attention, as BLIP trains them."
    )

    parts = {"blip": BlipEncoderConfig, "captioner": CaptionerConfig}


@registry.register_model("blip_pretraining")
class BlipPretraining(PretrainingModel):
    """Captioning and question matching on one image encoder (Li et al., 2022, section 3.2).

    What captioning learns of looking at patches is what matching needs, so the text layers are
    shared at first, and free of each other once both have learned.
    """

    Config = BlipPretrainingConfig
    shipped = {
        "blip.blip.": "blip_question_matching.safetensors",
        "captioner.blip.": "blip_captioning.safetensors",
    }
    figures = ("loss", "captioning_loss", "matching_loss", "matching_accuracy")

    def __init__(self, config: BlipPretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.blip = BlipEncoder(config.blip)
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

    def forward(self, samples: DescriptionSamples) -> dict[str, Any]:
        """Loss and report of a batch of images."""
        tokens = self.blip.encode_image(samples["grid_image"])
        images = len(tokens)
        patches = tokens[:, 1:].repeat_interleave(len(samples["captions"]) // images, dim=0)
        captioning = self.captioner.loss(patches, samples["captions"], samples["patch_mask"])
        captioning = captioning.view(images, -1).mean(dim=1)

        matching, right = self._matching(tokens, samples)
        return self._output(
            captioning + self.config.matching_weight * matching,
            {
                "captioning_loss": captioning.detach().sum(),
                "matching_loss": matching.detach().sum(),
                "matching_accuracy": right.sum(),
            },
            samples,
        )

    def _share_text_layers(self) -> None:
        encoder = self.blip.blip.text_encoder
        decoder = self.captioner.blip.text_decoder.bert
        encoder.embeddings = decoder.embeddings
        for own, other in zip(encoder.encoder.layer, decoder.encoder.layer, strict=True):
            for shared in ("crossattention", "intermediate", "output"):
                setattr(own, shared, getattr(other, shared))

    def _matching(self, tokens: Tensor, samples: DescriptionSamples) -> tuple[Tensor, Tensor]:
        """Mean loss of each image's texts [B], and the share of them that is judged rightly [B]."""
        images = len(tokens)
        texts = len(samples["texts"]) // images
        seen = tokens.repeat_interleave(texts, dim=0)
        # The class token is always seen: it stands first.
        seen_mask = F.pad(samples["text_patch_mask"], (1, 0), value=True)
        scores = self.blip.match(
            seen, *self.blip.tokenize(samples["texts"]), token_mask=seen_mask.long()
        )
        labels = torch.full((images, texts), 1 - MATCH, device=scores.device)
        labels[:, : texts // 2] = MATCH
        losses = F.cross_entropy(scores, labels.flatten(), reduction="none")
        right = (scores.detach().argmax(dim=-1).view(images, -1) == labels).float()
        return losses.view(images, -1).mean(dim=1), right.mean(dim=1)
