"""The task ``gqa_reading_comprehension_fusion``: the whole pipeline's answers."""

from typing import Any

import torch
from torch import nn

from lavis_ext import distributed
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa import FusionSamples, GqaFusionDataset
from lavis_ext.door import registry
from lavis_ext.evaluation.accuracy import answer_accuracy, baseline_accuracy
from lavis_ext.tasks.base import Evaluation, averages
from lavis_ext.tasks.gqa_fusion import GqaFusionTask


@registry.register_task("gqa_reading_comprehension_fusion")
class GqaReadingComprehensionFusionTask(GqaFusionTask):
    """Judges a fusion network by what the pipeline answers. It trains nothing."""

    takes_features = False

    def build_model(self, cfg: Config, *, load_weights: bool = True) -> nn.Module:
        """The model with its captioner and reader."""
        model: nn.Module = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, self.vocabulary, load_weights=load_weights, answering=True
        )
        return model

    def metrics(self, model: Any, dataset: GqaFusionDataset) -> list[str]:
        """Names of the metrics that an evaluation of this split will have."""
        kinds = dataset.table.values("structural")
        return ["answer_accuracy", *(f"answer_accuracy_{kind}" for kind in kinds), *FIGURES]

    def valid_step(self, model: Any, samples: FusionSamples) -> dict[str, Any]:
        """``report`` and ``count`` of a batch, and ``predictions`` by question id."""
        output = model.answer(samples)
        captions = [float(len(texts)) for texts in output.captions]
        wanted = float(model.config.captioner.sampling.num_captions)
        report = {
            "captions": sum(captions),
            "captions_repeated": float(sum(output.repeated)),
            "questions_short_of_captions": float(sum(count < wanted for count in captions)),
            "points": float((output.labels == 1).sum()),
            "matching": float(output.matching.sum()),
        }
        return {
            "report": {name: torch.tensor(value) for name, value in report.items()},
            "count": len(captions),
            "predictions": dict(zip(samples["question_id"], output.answers, strict=True)),
        }

    def after_evaluation(
        self, val_result: dict[str, Any], dataset: GqaFusionDataset, model: Any
    ) -> Evaluation:
        """Accuracy over all processes' shares, and what the pipeline did on average."""
        means, _ = averages(val_result, model.device)
        predictions = dict(distributed.gather(list(val_result["predictions"].items())))
        figures = answer_accuracy(dataset.table, predictions)
        if model.vocabulary is not None:
            figures |= baseline_accuracy(dataset.table, model.vocabulary)
        return Evaluation(figures | means, predictions)


FIGURES = (
    "captions",
    "captions_repeated",
    "questions_short_of_captions",
    "points",
    "matching",
)
"""Averages over questions: captions found, dropped as repeated, and so on."""
