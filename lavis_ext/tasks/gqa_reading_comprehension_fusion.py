"""The task ``gqa_reading_comprehension_fusion``: the whole pipeline's answers."""

from typing import Any

import torch
from torch import nn

from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa.dataset import FusionSamples, GqaFusionDataset
from lavis_ext.evaluation.gqa.grounding import Attention, heat_grounding
from lavis_ext.evaluation.result import Trace
from lavis_ext.registry import registry
from lavis_ext.tasks.gqa_fusion import GqaFusionTask


@registry.register_task("gqa_reading_comprehension_fusion")
class GqaReadingComprehensionFusionTask(GqaFusionTask):
    """Judges a fusion network by what the pipeline answers. It trains nothing."""

    takes_features = False
    no_grounding = ""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._boxes: dict[str, Attention] = {}

    def build_model(self, cfg: Config, *, load_weights: bool = True) -> nn.Module:
        """The model with its captioner and reader."""
        model: nn.Module = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, self.vocabulary, load_weights=load_weights, answering=True
        )
        return model

    def metrics(self, model: Any, dataset: GqaFusionDataset) -> dict[str, str | None]:
        """Metrics of validations of this split: None, or why one isn't computed."""
        return {**self.scoring.metrics(dataset), **dict.fromkeys(FIGURES)}

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Have the objects at hand, too, that heat maps are held against."""
        super().before_evaluation(model, dataset, **kwargs)
        self._boxes = self.scoring.scorer(dataset).boxes

    def valid_step(self, model: Any, samples: FusionSamples) -> dict[str, Any]:
        """``report`` and ``count`` of a batch, and what there is by question id.

        Grounding is that of the refined heat maps on the patches, which captions are drawn from.
        """
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
            "grounding": {
                name: heat_grounding(self._boxes[name], heat.reshape(output.grid))
                for name, heat in zip(
                    samples["question_id"], output.patch_heat.cpu().double().numpy(), strict=True
                )
                if name in self._boxes
            },
            "traces": {
                name: Trace.of(output, row)
                for row, name in enumerate(samples["question_id"])
                if name in self.scoring.shown
            },
        }


FIGURES = (
    "captions",
    "captions_repeated",
    "questions_short_of_captions",
    "points",
    "matching",
)
"""Averages over questions: captions found, dropped as repeated, and so on."""
