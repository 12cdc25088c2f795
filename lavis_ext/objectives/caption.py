"""Describe pictures through the captioner's frozen decoder."""

from typing import ClassVar

import torch

from lavis_ext.common.metrics import Metric
from lavis_ext.encoders.blip.packed_questions import send
from lavis_ext.objectives.base import FusedBatch, Objective, ObjectiveOutput
from lavis_ext.registry import registry


@registry.register_objective("caption")
class CaptionObjective(Objective):
    """Cross-entropy of the answer as a sentence, through the frozen caption decoder.

    The decoder reads the captioner's own image tokens, fused with the other streams
    (``model.fusions.captioner``), and predicts each word from those before it (teacher forcing).
    The loss of a sentence is the mean over its words and [SEP], without the prompt (Li et al.,
    2022, section 3.2). Sentences are GQA's ``fullAnswer`` or, in data without, question and answer,
    in lower case and without punctuation around them. A question without an answer has no loss.
    """

    metrics = (Metric("word_accuracy", "share"), Metric("without_sentence", "share", "min"))
    needs_statements = True
    part: ClassVar[str] = "captioner"

    def forward(self, batch: FusedBatch) -> ObjectiveOutput:
        """Losses, and sums of word accuracies and of questions without a sentence."""
        # Imported here because it takes a second, which `import lavis_ext` doesn't need.
        from lavis_ext.decoders.fid_reader import normalize_answer

        captioner, tokens = batch.parts[self.part]
        sentences = [normalize_answer(each or "") for each in batch.samples["statement"]]
        scored = captioner.score_sentences(tokens, batch.samples["image_index"], sentences)
        known = send(torch.tensor([bool(each) for each in sentences]), tokens.device)
        return ObjectiveOutput(
            scored.losses.where(known, 0.0),
            {
                "word_accuracy": scored.accuracies.where(known, 0.0).sum(),
                "without_sentence": (~known).float().sum(),
            },
        )
