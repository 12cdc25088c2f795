"""The task ``gqa_fusion``: what LAVIS's programs ask a task for, handed on to the parts."""

from typing import Any, ClassVar

from torch import nn

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import Config
from lavis_ext.datasets.gqa.dataset import FusionSamples, GqaFusionDataset
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.figures import ACCURACY, figures_of, reasons_of
from lavis_ext.evaluation.result import SplitResult
from lavis_ext.registry import registry
from lavis_ext.tasks.answer_scoring import AnswerScoring
from lavis_ext.tasks.base import BY_QUESTION, Evaluation, SummingTask, averages, only_data_set


@registry.register_task("gqa_fusion")
class GqaFusionTask(SummingTask):
    """Trains a fusion network, and judges it by the answers and matches it gives."""

    takes_features = True
    no_grounding: ClassVar[str] = (
        "the answer head has no attention map; the pipeline has heat maps "
        "(run.task: gqa_reading_comprehension_fusion)"
    )
    """Why there are no attention maps; empty where there are some."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.vocabulary: AnswerVocabulary | None = None
        self.scoring = AnswerScoring(config.run, self.no_grounding)

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

    def metrics(self, model: Any, dataset: GqaFusionDataset) -> dict[str, str | None]:
        """Metrics of validations of this model on this split: None, or why one isn't computed."""
        named: dict[str, str | None] = dict.fromkeys(model.figures)
        return named | (self.scoring.metrics(dataset) if ACCURACY in named else {})

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

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """A ``final`` evaluation keeps more."""
        self.scoring.begin(dataset, final=bool(kwargs.get("final")))

    def after_evaluation(
        self, val_result: dict[str, Any], dataset: GqaFusionDataset, model: Any
    ) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        means, count = averages(val_result, model.device)
        predictions, grounding, traces = (
            dict(distributed.gather(list(val_result[name].items()))) for name in BY_QUESTION
        )
        outside = means.pop("answer_outside_vocabulary", None)
        if outside is not None:
            means["answers_outside_vocabulary"] = outside * count
            # The head counts by class, which leaves out answers that the vocabulary lacks.
            del means[ACCURACY]
        result = None
        scored = predictions and distributed.is_main_process()
        if scored and self.scoring.scorer(dataset).questions:
            result = self.scoring.result(dataset, model.vocabulary, predictions, grounding, traces)
        figures, reasons = distributed.broadcast(_figures_and_reasons(result))
        return Evaluation(figures | means, predictions, reasons, result)


def _figures_and_reasons(result: SplitResult | None) -> tuple[dict[str, float], dict[str, str]]:
    if result is None:
        return {}, {}
    baselines = {
        f"baseline_{name}": scores.metrics["accuracy"].value
        for name, scores in result.baselines.items()
    }
    return figures_of(result.scores) | baselines, reasons_of(result.outcomes.not_computed)


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
