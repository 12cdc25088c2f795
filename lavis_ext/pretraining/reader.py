"""The model ``reader_pretraining``: answering a question from captions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import Metric
from lavis_ext.config.schema import option
from lavis_ext.decoders.fid_reader import SEPARATOR, EncodedPassages, FidReader, ReaderConfig
from lavis_ext.models.base import StepOutput
from lavis_ext.pretraining.base import PretrainingConfig, PretrainingModel, step_output
from lavis_ext.pretraining.reading_data import ReadingSamples
from lavis_ext.registry import registry


@dataclass
class ReaderPretrainingConfig(PretrainingConfig):
    """Options of ``reader_pretraining``."""

    reader: Any = option(dict, "The reader (ReaderConfig).")
    relative_bias_std: float = option(
        4.0, "Standard deviation of T5's relative position biases at initialization.", at_least=0
    )
    labelling_weight: float = option(1.0, "Weight of the loss of token labels.", at_least=0)

    parts = {"reader": ReaderConfig}


@registry.register_model("reader_pretraining")
class ReaderPretraining(PretrainingModel):
    """Answers a question from captions.

    From answers alone, a T5 this small learns to guess by the kind of question. So each token of
    the encoder has two labels that teach it to compare question and captions: whether its word
    occurs on the other side, and whether its caption is about an object in the question.

    T5 encodes positions as biases of attention logits, which matter only if they differ by several
    units. Adam moves a bias by about the learning rate per step, so it would take thousands of
    steps from the usual initialization near 0. Hence ``relative_bias_std`` is large.
    """

    Config = ReaderPretrainingConfig
    shipped = {"reader.t5.": "reader.safetensors"}
    shipped_dtype = torch.float16  # with float32, the miniature would be larger than 20 MB
    reported = (
        Metric("answer_loss", better="min"),
        Metric("labelling_loss", better="min"),
        Metric("answer_accuracy", "share"),
    )

    def __init__(self, config: ReaderPretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.reader = FidReader(config.reader)
        if config.reader.num_captions_fid != 1:
            raise UserError("model.reader.num_captions_fid must be 1: labels are of one caption.")
        self.labels = nn.Linear(config.reader.d_model, 2)
        if config.reader.weights is None:
            for name, parameter in self.reader.named_parameters():
                if name.endswith("relative_attention_bias.weight"):
                    nn.init.normal_(parameter, std=config.relative_bias_std)

    def forward(self, samples: ReadingSamples) -> StepOutput:
        """Sums of the loss and of metrics over a batch of questions.

        ``answer_accuracy`` only in evaluation mode.
        """
        asked, captions = samples["questions"], samples["captions"]
        encoded = self.reader.encode(asked, captions)
        answering = self.reader.loss(encoded, samples["answers"])
        labelling = self._labelling(encoded, samples)
        report = {
            "answer_loss": answering.detach().sum(),
            "labelling_loss": labelling.detach().sum(),
        }
        if not self.training:
            answers = self.reader.read(asked, captions)
            right = [a == b for a, b in zip(answers, samples["answers"], strict=True)]
            report["answer_accuracy"] = torch.tensor(float(sum(right)), device=answering.device)
        return step_output(answering + self.config.labelling_weight * labelling, report)

    def shard_units(self) -> list[str]:
        """Blocks of T5."""
        return ["reader.t5.*.block.*"]

    def token_labels(
        self, encoded: EncodedPassages, samples: ReadingSamples
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Labels of each token of P passages, bool [P, L] each.

        Returns:
            Whether its word occurs on the other side, question or caption; whether its caption is
            about an object in the question, valid in captions; whether it is in a caption.
        """
        ids, mask, device = encoded.ids, encoded.mask, encoded.ids.device
        lengths = [
            len(self.reader.tokenizer(question.strip() + SEPARATOR)["input_ids"]) - 1
            for question in samples["questions"]
        ]
        counts = torch.tensor(encoded.counts, device=device)
        asked = torch.tensor(lengths, device=device).repeat_interleave(counts)
        in_question = torch.arange(ids.shape[1], device=device) < asked[:, None]
        in_caption = mask & ~in_question
        across = in_question[:, :, None] & in_caption[:, None, :]
        same = (ids[:, :, None] == ids[:, None, :]) & (across | across.transpose(1, 2))
        about = torch.tensor([each for group in samples["about"] for each in group], device=device)
        return same.any(dim=2), about[:, None].expand(ids.shape), in_caption

    def _labelling(self, encoded: EncodedPassages, samples: ReadingSamples) -> Tensor:
        """Mean loss over each question's tokens [Q]."""
        repeated, about, in_caption = self.token_labels(encoded, samples)
        scores = self.labels(encoded.states)
        by_passage = _mean(_binary(scores[..., 0], repeated), encoded.mask)
        by_passage = by_passage + _mean(_binary(scores[..., 1], about), in_caption)
        return torch.stack([each.mean() for each in by_passage.split(encoded.counts)])


def _binary(scores: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [P] over the positions of ``mask`` [P, L]."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
