"""The task ``gqa_fusion``: what LAVIS's programs ask a task for, handed on to the parts."""

from typing import Any

from torch import nn

from lavis_ext import distributed
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa import FusionSamples, GqaFusionDataset
from lavis_ext.datasets.vocabulary import AnswerVocabulary
from lavis_ext.door import registry
from lavis_ext.errors import UserError
from lavis_ext.evaluation.accuracy import answer_accuracy, baseline_accuracy
from lavis_ext.tasks.base import Evaluation, SummingTask, averages, only_data_set


@registry.register_task("gqa_fusion")
class GqaFusionTask(SummingTask):
    """Trains a fusion network, and judges it by the answers and matches it gives."""

    takes_features = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.vocabulary: AnswerVocabulary | None = None

    def build_datasets(self, cfg: Config, splits: list[str]) -> dict[str, GqaFusionDataset]:
        """Data sets by split, and the vocabulary if the training split is among them."""
        name = only_data_set(cfg)
        _refuse_misfitting_images(cfg, name)
        objectives = {
            registry.get_objective_class(each): options
            for each, options in cfg.model.objectives.items()
        }
        builder = registry.get_builder_class(name)(cfg.datasets[name])
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
        kinds = dataset.table.values("structural")
        answering = "answer_accuracy" in model.figures
        return [*model.figures, *(f"answer_accuracy_{kind}" for kind in kinds if answering)]

    def build_model(self, cfg: Config, *, load_weights: bool = True) -> nn.Module:
        """The model, with the vocabulary of the data sets built before."""
        model: nn.Module = registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, self.vocabulary, load_weights=load_weights
        )
        return model

    def valid_step(self, model: Any, samples: FusionSamples) -> dict[str, Any]:
        """``report`` and ``count`` of a batch, and ``predictions`` by question id."""
        report, answers = model.evaluate(samples)
        asked = samples["question_id"] if answers else []
        return {
            "report": report,
            "count": len(samples["text_input"]),
            "predictions": dict(zip(asked, answers or [], strict=True)),
        }

    def after_evaluation(
        self, val_result: dict[str, Any], dataset: GqaFusionDataset, model: Any
    ) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        means, count = averages(val_result, model.device)
        predictions = dict(distributed.gather(list(val_result["predictions"].items())))
        figures = {}
        if predictions:
            # By the answers' text, which covers answers that the vocabulary lacks as well.
            figures = answer_accuracy(dataset.table, predictions)
            if model.vocabulary is not None:
                figures |= baseline_accuracy(dataset.table, model.vocabulary)
            outside = means.pop("answer_outside_vocabulary")
            figures["answers_outside_vocabulary"] = outside * count
        figures = {**figures, **{n: v for n, v in means.items() if n not in figures}}
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
