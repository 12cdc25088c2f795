"""The model ``reader_pretraining``: captions and a question to its answer."""

from dataclasses import dataclass
from typing import Any

import torch

from lavis_ext.config.schema import option
from lavis_ext.door import registry
from lavis_ext.pipeline.reader import FidReader, ReaderConfig
from lavis_ext.pretraining.base import PretrainingConfig, PretrainingModel
from lavis_ext.pretraining.datasets import ReadingSamples


@dataclass
class ReaderPretrainingConfig(PretrainingConfig):
    """Options of ``reader_pretraining``."""

    reader: Any = option(dict, "The reader (ReaderConfig).")

    parts = {"reader": ReaderConfig}


@registry.register_model("reader_pretraining")
class ReaderPretraining(PretrainingModel):
    """Captions and a question to its answer."""

    Config = ReaderPretrainingConfig
    shipped = {"reader.t5.": "reader.safetensors"}
    figures = ("loss", "answer_accuracy")

    def __init__(self, config: ReaderPretrainingConfig) -> None:
        super().__init__()
        self.reader = FidReader(config.reader)

    def forward(self, samples: ReadingSamples) -> dict[str, Any]:
        """Loss and report of a batch of questions; they are answered in evaluation alone."""
        asked, captions = samples["questions"], samples["captions"]
        losses = self.reader.loss(asked, captions, samples["answers"])
        report = {}
        if not self.training:
            answers = self.reader.read(asked, captions)
            right = [a == b for a, b in zip(answers, samples["answers"], strict=True)]
            report["answer_accuracy"] = torch.tensor(float(sum(right)), device=losses.device)
        return self._output(losses, report, samples)
