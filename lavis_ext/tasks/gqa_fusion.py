"""The task ``gqa_fusion``: what LAVIS's programs ask a task for, handed on to the parts."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lavis_ext import distributed
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa import FusionSamples, GqaFusionDataset
from lavis_ext.datasets.vocabulary import AnswerVocabulary
from lavis_ext.door import BaseTask, registry
from lavis_ext.errors import UserError
from lavis_ext.evaluation.accuracy import answer_accuracy, baseline_accuracy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, the same in every process.

    Attributes:
        figures: metrics by name.
        predictions: answers by question id; empty for a model without an answer head.
    """

    figures: dict[str, float]
    predictions: dict[str, str]


@registry.register_task("gqa_fusion")
class GqaFusionTask(BaseTask):
    """Trains a fusion network, and judges it by the answers and matches it gives."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vocabulary: AnswerVocabulary | None = None

    @classmethod
    def setup_task(cls, cfg: Config) -> "GqaFusionTask":
        """The task of a run."""
        return cls(cfg)

    def build_datasets(self, cfg: Config, splits: list[str]) -> dict[str, GqaFusionDataset]:
        """Data sets by split, and the vocabulary if the training split is among them.

        LAVIS keys data sets by name first; a run of this task has one.
        """
        if len(cfg.datasets) != 1:
            raise UserError(f"datasets: one is trained on at a time, not {len(cfg.datasets)}.")
        name, section = next(iter(cfg.datasets.items()))
        _refuse_misfitting_images(cfg, name)
        objectives = {
            registry.get_objective_class(each): options
            for each, options in cfg.model.objectives.items()
        }
        builder = registry.get_builder_class(name)(section)
        datasets: dict[str, GqaFusionDataset] = builder.build_datasets(
            cfg.run.sizes(splits),
            seed=cfg.run.seed,
            with_mismatched=any(objective.needs_mismatched for objective in objectives),
        )
        sizes = [o.vocabulary_size for each, o in objectives.items() if each.needs_vocabulary]
        if "train" in splits and sizes:
            # Of the whole split: a sample of it would leave the answer head without most classes.
            self.vocabulary = AnswerVocabulary.from_table(builder.read_split("train"), max(sizes))
        return datasets

    def metrics(self, model: Any, dataset: GqaFusionDataset) -> list[str]:
        """Names of the metrics that an evaluation of this model on this split will have."""
        kinds = dataset.table.columns["structural"].drop_null().unique().to_pylist()
        answering = "answer_accuracy" in model.figures
        return [*model.figures, *(f"answer_accuracy_{kind}" for kind in kinds if answering)]

    def build_model(self, cfg: Config, *, load_weights: bool = True) -> nn.Module:
        """The model, with the vocabulary of the data sets built before."""
        model: nn.Module = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, self.vocabulary, load_weights=load_weights
        )
        return model

    def train_step(self, model: nn.Module, samples: FusionSamples) -> dict[str, Any]:
        """The model's ``loss`` and ``report`` of a batch."""
        output: dict[str, Any] = model(samples)
        return output

    def valid_step(self, model: Any, samples: FusionSamples) -> dict[str, Any]:
        """``report`` of a batch, and ``predictions`` by question id."""
        report, answers = model.evaluate(samples)
        asked = samples["question_id"] if answers else []
        return {"report": report, "predictions": dict(zip(asked, answers or [], strict=True))}

    def evaluation(
        self, model: nn.Module, data_loader: Iterable[FusionSamples], cuda_enabled: bool = True
    ) -> dict[str, Any]:
        """``valid_step`` over a loader: sums of the reports over all processes, predictions."""
        totals: dict[str, torch.Tensor] = {}
        predictions: dict[str, str] = {}
        questions = 0
        for samples in data_loader:
            result = self.valid_step(model, samples)
            for name, value in result["report"].items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
            predictions |= result["predictions"]
            questions += len(samples["text_input"])
        return {"totals": totals, "predictions": predictions, "questions": questions}

    def after_evaluation(
        self, val_result: dict[str, Any], dataset: GqaFusionDataset, model: Any
    ) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        names = sorted(val_result["totals"])
        sums = torch.stack(
            [torch.tensor(float(val_result["questions"])).double()]
            + [val_result["totals"][name].cpu().double() for name in names]
        )
        count, *totals = distributed.sum_over_processes(sums.to(model.device)).tolist()
        predictions = dict(distributed.gather(list(val_result["predictions"].items())))
        averages = {name: total / count for name, total in zip(names, totals, strict=True)}
        figures = {}
        if predictions:
            # By the answers' text, which covers answers that the vocabulary lacks as well.
            figures = answer_accuracy(dataset.table, predictions)
            if model.vocabulary is not None:
                figures |= baseline_accuracy(dataset.table, model.vocabulary)
            outside = averages.pop("answer_outside_vocabulary")
            figures["answers_outside_vocabulary"] = outside * count
        figures = {**figures, **{n: v for n, v in averages.items() if n not in figures}}
        return Evaluation(figures, predictions)


def _refuse_misfitting_images(cfg: Config, name: str) -> None:
    """Images of another size than the model's would only be noticed in the first batch."""
    wanted = {
        "grid_size": cfg.model.blip.image_size,
        "segmentation_size": cfg.model.efficient_sam.image_size,
    }
    for mode in ("train", "eval"):
        processor = getattr(cfg.datasets[name].vis_processor, mode)
        for option, side in wanted.items():
            found = getattr(processor, option, side)
            if found != side:
                raise UserError(
                    f"datasets.{name}.vis_processor.{mode}.{option} is {found}, but the model's "
                    f"encoder is built for {side} pixels; leave the key out, or change both."
                )
