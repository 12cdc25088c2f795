"""GQA's tasks ``gqa_fusion`` and ``gqa_reading_comprehension_fusion``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.gqa.answer_scoring import AnswerScoring
from lavis_ext.evaluation.gqa.bootstrap import FEWEST_RESAMPLES
from lavis_ext.evaluation.gqa.grounding import Attention, heat_grounding
from lavis_ext.evaluation.gqa.metrics import (
    ACCURACY,
    BESIDE,
    SCORED,
    headline,
    metrics_of,
    reasons_of,
)
from lavis_ext.evaluation.gqa.predictions import write_predictions
from lavis_ext.evaluation.gqa.reported import reported
from lavis_ext.evaluation.gqa.result import SplitResult, Trace
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.registry import registry
from lavis_ext.tasks.base import (
    Datasets,
    EvalStep,
    Evaluation,
    Splits,
    Task,
    TaskConfig,
    Totals,
    averages,
    gathered,
)

OUTSIDE = "answer_outside_vocabulary"
"""The answer head's metric of a batch; evaluations report the number of such answers."""


@dataclass
class GqaTaskConfig(TaskConfig):
    """The section ``task`` of GQA's tasks."""

    full_metrics: str = option(
        "end",
        "When metrics that read choices files (validity, plausibility) are computed; "
        "run.metric always is.",
        choices=("end", "always"),
    )
    resamples: int = option(
        1000,
        "Draws of the bootstrap for the final metrics' intervals; 0 for no intervals.",
        at_least=0,
    )
    report_examples: int = option(
        500, "Questions of each split that the page shows.", at_least=0, at_most=5000
    )

    def check_together(self, where: str) -> None:
        """Refuse a number of resamples that gives no interval."""
        if 0 < self.resamples < FEWEST_RESAMPLES:
            raise UserError(
                f"{where}.resamples is {self.resamples}; it must be 0, for no intervals, or at "
                f"least {FEWEST_RESAMPLES}."
            )


class GqaTask(Task):
    """GQA's data, and a model built for it.

    Class attributes:
        answering: whether the model needs its captioner and reader.
    """

    Config = GqaTaskConfig
    splits = Splits(train=("train",), valid=("val",), test=("testdev",))
    OLD_KEYS = tuple(
        OldKey(f"run.{name}", f"task.{name}")
        for name in ("full_metrics", "resamples", "report_examples")
    )
    answering: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vocabulary: AnswerVocabulary | None = None

    @classmethod
    def setup_task(cls, cfg: Any) -> "Task":
        """The task of a run. Raises UserError for training on a split that evaluates."""
        if cfg.run.train_splits is not None and [*cfg.run.train_splits] != ["train"]:
            raise UserError("run.train_splits must be [train]: GQA's other splits evaluate.")
        return super().setup_task(cfg)

    def build_datasets(self, cfg: Any, splits: Sequence[str]) -> dict[str, Datasets]:
        """Data sets by name, then by split, and the vocabulary if ``train`` is among the splits."""
        self.vocabulary = None
        return super().build_datasets(cfg, splits)

    def build_options(self, cfg: Any) -> dict[str, Any]:
        """Mismatched questions where an objective needs them, and the encoders' image sizes."""
        return {
            "with_mismatched": any(each.needs_mismatched for each in _objectives(cfg)),
            "image_sizes": {name: each.image_size for name, each in cfg.model.streams.items()},
        }

    def built(self, builder: Any, cfg: Any, splits: Sequence[str]) -> None:
        """Take the answer vocabulary of the first data set with questions."""
        sizes = [
            options.vocabulary_size
            for each, options in _objectives(cfg).items()
            if each.needs_vocabulary
        ]
        wanted = "train" in splits and sizes and self.vocabulary is None
        if wanted and hasattr(builder, "read_split"):
            # Of the whole split: a sample of it would leave the answer head without most classes.
            self.vocabulary = AnswerVocabulary.from_table(builder.read_split("train"), max(sizes))

    def build_model(self, cfg: Any, *, load_weights: bool = True) -> Any:
        """The model, with the vocabulary of the data sets that were built before."""
        answering = {"answering": True} if self.answering else {}
        return registry.get_model_class(cfg.model.arch).from_config(
            cfg.model, load_weights=load_weights, vocabulary=self.vocabulary, **answering
        )


@registry.register_task("gqa_fusion")
class GqaFusionTask(GqaTask):
    """Trains a fusion network on GQA and scores its answers and matches.

    Class attributes:
        no_grounding: why there are no attention maps; empty where there are some.
    """

    default_metric = ACCURACY
    no_grounding: ClassVar[str] = (
        "the answer head has no attention map; the pipeline has heat maps "
        "(run.task: gqa_reading_comprehension_fusion)"
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scoring = AnswerScoring(config, self.no_grounding)

    def metrics(self, model: Any) -> list[Metric]:
        """The model's metrics, and GQA's if it answers."""
        own = by_name(super().metrics(model))
        return [*(own | by_name([*SCORED, *BESIDE]) if ACCURACY in own else own).values()]

    def not_computed(self, model: Any, dataset: Any) -> dict[str, str]:
        """Why validations of this split lack some of ``metrics``, by name."""
        names = {metric.name for metric in self.metrics(model)}
        reasons = self.scoring.not_computed(dataset) if ACCURACY in names else {}
        if OUTSIDE in names:
            reasons[OUTSIDE] = "validations have answers_outside_vocabulary"
        return reasons

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Choose the questions that the report of a ``final`` evaluation shows."""
        self.scoring.begin(dataset, final=bool(kwargs.get("final")))

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums and count of a batch, and answers by question id."""
        report, answers = model.evaluate(samples)
        asked = samples["ids"] if answers else []
        return EvalStep(
            report,
            len(samples["text_input"]),
            {"predictions": dict(zip(asked, answers or [], strict=True))},
        )

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Metrics over all processes' shares. Entered by every process."""
        means, count = averages(val_result, model.device)
        predictions, grounding, traces = (
            gathered(val_result, name) for name in ("predictions", "grounding", "traces")
        )
        outside = means.pop(OUTSIDE, None)
        if outside is not None:
            means["answers_outside_vocabulary"] = outside * count
            # The head counts by class, which leaves out answers that the vocabulary lacks.
            del means[ACCURACY]
        result = None
        scored = predictions and distributed.is_main_process()
        if scored and self.scoring.scorer(dataset).questions:
            result = self.scoring.result(dataset, model.vocabulary, predictions, grounding, traces)
        metrics, reasons = distributed.broadcast(_metrics_and_reasons(result))
        scores = None if result is None else asdict(result.scores)
        return Evaluation(metrics | means, predictions, reasons, scores, result)

    def write_predictions(self, path: Path, predictions: Mapping[str, Any]) -> None:
        """Write answers in the format of GQA's leaderboard."""
        write_predictions(path, predictions)

    def headline(self, split: str, metrics: Mapping[str, float]) -> str:
        """Accuracy against the better baseline."""
        return headline(split, metrics)

    def reported(
        self, split: str, dataset: Any, model: Any, evaluation: Evaluation
    ) -> ReportedSplit:
        """Metrics with intervals and baselines, breakdowns, confusions, examples."""
        declared = by_name(self.metrics(model))
        result: SplitResult | None = evaluation.details
        texts = {}
        if result is not None:
            shown = set(result.shown)
            columns = (
                dataset.table.columns[name].to_pylist() for name in ("question_id", "question")
            )
            texts = {name: text for name, text in zip(*columns, strict=True) if name in shown}
        return reported(split, evaluation.metrics, result, texts, dataset.images, declared)


@registry.register_task("gqa_reading_comprehension_fusion")
class GqaReadingComprehensionFusionTask(GqaFusionTask):
    """Scores a fusion network by the pipeline's answers. It trains nothing."""

    takes_features = False
    no_grounding = ""
    answering = True
    AVERAGES = (
        Metric("captions", better=None),
        Metric("captions_repeated", better="min"),
        Metric("questions_short_of_captions", better="min"),
        Metric("points", better=None),
        Metric("matching", better=None),
    )
    """Averages over questions: captions found, dropped as repeated, and so on."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._boxes: dict[str, Attention] = {}

    def metrics(self, model: Any) -> list[Metric]:
        """GQA's metrics, and averages over the pipeline's steps."""
        return [*SCORED, *BESIDE, *self.AVERAGES]

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Have the objects ready, too, that heat maps are compared with."""
        super().before_evaluation(model, dataset, **kwargs)
        self._boxes = self.scoring.scorer(dataset).boxes

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums and count of a batch, and answers, grounding and traces by question id.

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
        heats = output.patch_heat.cpu().double().numpy()
        by_id = {
            "predictions": dict(zip(samples["ids"], output.answers, strict=True)),
            "grounding": {
                name: heat_grounding(self._boxes[name], heat.reshape(output.grid))
                for name, heat in zip(samples["ids"], heats, strict=True)
                if name in self._boxes
            },
            "traces": {
                name: Trace.of(output, row)
                for row, name in enumerate(samples["ids"])
                if name in self.scoring.shown
            },
        }
        sums = {name: torch.tensor(value) for name, value in report.items()}
        return EvalStep(sums, len(captions), by_id)


def _objectives(cfg: Any) -> dict[Any, Any]:
    """The classes of a model's objectives, with their options."""
    return {
        registry.get_objective_class(name): options
        for name, options in cfg.model.objectives.items()
    }


def _metrics_and_reasons(result: SplitResult | None) -> tuple[dict[str, float], dict[str, str]]:
    if result is None:
        return {}, {}
    baselines = {
        f"baseline_{name}": scores.metrics["accuracy"].value
        for name, scores in result.baselines.items()
    }
    return metrics_of(result.scores) | baselines, reasons_of(result.outcomes.not_computed)
