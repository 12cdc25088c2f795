"""GQA's tasks ``gqa_fusion`` and ``gqa_reading_comprehension_fusion``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lavis_ext import distributed
from lavis_ext.common.errors import UserError
from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.config.renamed import OldKey
from lavis_ext.config.schema import option
from lavis_ext.datasets.gqa.builder import GqaFusionBuilder
from lavis_ext.datasets.questions.builder import QuestionBuilder
from lavis_ext.evaluation.above_blind import BLIND
from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.evaluation.gqa.answer_scoring import AnswerScoring
from lavis_ext.evaluation.gqa.grounding import Attention, heat_grounding
from lavis_ext.evaluation.gqa.metrics import (
    ACCURACY,
    BESIDE,
    BY_VQA_RULES,
    IN_RUNS,
    SCORED,
    headline,
    metrics_of,
    reasons_of,
)
from lavis_ext.evaluation.gqa.outcomes import Outcomes, possible_metrics
from lavis_ext.evaluation.gqa.predictions import write_predictions
from lavis_ext.evaluation.gqa.reported import reported
from lavis_ext.evaluation.gqa.result import SplitResult, Trace
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.evaluation.vqa.accuracy import right_by_vqa_rules
from lavis_ext.registry import registry
from lavis_ext.tasks.base import (
    EvalStep,
    Evaluation,
    Splits,
    Task,
    Totals,
    gathered,
)
from lavis_ext.tasks.questions import (
    HEAD_OUTSIDE,
    QuestionTask,
    QuestionTaskConfig,
    pipeline_averages,
    pipeline_sums,
)


@dataclass
class GqaTaskConfig(QuestionTaskConfig):
    """The section ``task`` of GQA's tasks."""

    full_metrics: str = option(
        "end",
        "When to compute metrics that read choices files (validity, plausibility); run.metric is "
        "computed in every validation.",
        choices=("end", "always"),
    )


class GqaTask(QuestionTask):
    """Base of GQA's tasks: its data, and a model with its vocabulary."""

    Config = GqaTaskConfig
    splits = Splits(train=("train",), valid=("val",), test=("testdev",))
    OLD_KEYS = tuple(
        OldKey(f"run.{name}", f"task.{name}")
        for name in ("full_metrics", "resamples", "report_examples")
    )

    @classmethod
    def setup_task(cls, cfg: Any) -> Task:
        """Build a run's task. Raises UserError for data that GQA's metrics don't support."""
        for name in cfg.datasets:
            builder = registry.get_builder_class(name)
            if issubclass(builder, QuestionBuilder) and not issubclass(builder, GqaFusionBuilder):
                raise UserError(
                    f"datasets.{name} isn't in GQA's layout, which the task {cfg.run.task} "
                    "requires; run.task=vqa_fusion accepts it, also together with GQA's data."
                )
        return super().setup_task(cfg)


@registry.register_task("gqa_fusion")
class GqaFusionTask(GqaTask):
    """Trains a fusion network on GQA and scores its answers and matches.

    Class attributes:
        no_grounding: reason for missing attention maps; empty if there are some.
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
        return [*(own | by_name([*SCORED, *BESIDE]) if self.predicts() else own).values()]

    def not_computed(self, model: Any, dataset: Any) -> dict[str, str]:
        """Reasons why validations of this split lack some of ``metrics``, by name."""
        names = {metric.name for metric in self.metrics(model)}
        reasons = self.scoring.not_computed(dataset) if ACCURACY in names else {}
        if HEAD_OUTSIDE in names:
            reasons[HEAD_OUTSIDE] = "validations have answers_outside_vocabulary"
        return reasons

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Select the questions shown in the report of a ``final`` evaluation."""
        self.scoring.begin(dataset, final=bool(kwargs.get("final")))

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Metrics over all processes' shares. Called by every process."""
        means = self.means(val_result, model)
        predictions, grounding, traces = (
            gathered(val_result, name) for name in ("predictions", "grounding", "traces")
        )
        traces = {name: Trace.of_json(values) for name, values in traces.items()}
        result, reasons = None, {}
        scored = predictions and distributed.is_main_process()
        if scored and self.scoring.scorer(dataset).questions:
            answerer, lacking = self.question_only() if self.scoring.final else (None, "")
            result = self.scoring.result(
                dataset, model.vocabulary, predictions, grounding, traces, answerer
            )
            reasons = {BLIND: lacking} if lacking else {}
        metrics, reasons = distributed.broadcast(_metrics_and_reasons(result, reasons))
        scores = None if result is None else asdict(result.scores)
        return Evaluation(metrics | means, predictions, reasons, scores, result)

    def write_predictions(self, path: Path, predictions: Mapping[str, Any]) -> None:
        """Write answers in the format of GQA's leaderboard."""
        write_predictions(path, predictions)

    def by_image(self, dataset: Any, evaluation: Evaluation) -> ByImage | None:
        """GQA's metrics by image, all but ``distribution``."""
        result: SplitResult | None = evaluation.details
        if result is None:
            return None
        images = [each.image_id for each in result.outcomes.questions]
        blind = None if result.blind is None else _in_runs(result.blind)
        return ByImage.of(_in_runs(result.outcomes), images, blind)

    def headline(self, split: str, metrics: Mapping[str, float]) -> str:
        """Accuracy against the baselines."""
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
    """Scores a fusion network by the pipeline's answers, without training."""

    takes_features = False
    no_grounding = ""
    answering = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._boxes: dict[str, Attention] = {}

    def metrics(self, model: Any) -> list[Metric]:
        """GQA's metrics, accuracy by VQA's rules, and averages over the pipeline's steps."""
        return [*SCORED, BY_VQA_RULES, *BESIDE, *pipeline_averages(model)]

    def not_computed(self, model: Any, dataset: Any) -> dict[str, str]:
        """Reasons why validations of this split lack some of ``metrics``, by name."""
        reasons = super().not_computed(model, dataset)
        unknown = {BY_VQA_RULES.name: reasons[ACCURACY]} if ACCURACY in reasons else {}
        return reasons | unknown

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Select the report's questions, and read the objects for grounding."""
        super().before_evaluation(model, dataset, **kwargs)
        self._boxes = self.scoring.scorer(dataset).boxes

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Also accuracy as LAVIS's task has it. Entered by every process."""
        found = super().after_evaluation(val_result, dataset, model)
        questions = self.scoring.scorer(dataset).questions
        if not questions:
            return found
        right = sum(right_by_vqa_rules(found.predictions[q.id], q.answer) for q in questions)
        return replace(found, metrics=found.metrics | {BY_VQA_RULES.name: right / len(questions)})

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums and count of a batch, and answers, grounding and traces by question id.

        Grounding is measured on the refined patch heat maps, from which captions are sampled.
        """
        output = model.answer(samples)
        heats = output.patch_heat.cpu().double().numpy()
        by_id = {
            "predictions": dict(zip(samples["ids"], output.answers, strict=True)),
            "grounding": {
                name: heat_grounding(self._boxes[name], heat.reshape(output.grid))
                for name, heat in zip(samples["ids"], heats, strict=True)
                if name in self._boxes
            },
            "traces": {
                name: Trace.of(output, row).as_json()
                for row, name in enumerate(samples["ids"])
                if name in self.scoring.shown
            },
        }
        return EvalStep(pipeline_sums(model, output), len(output.answers), by_id)


def _in_runs(outcomes: Outcomes) -> dict[str, Values]:
    """Values per question by the metrics' names in runs."""
    return {IN_RUNS[name]: each for name, each in outcomes.values.items()}


def _metrics_and_reasons(
    result: SplitResult | None, others: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    if result is None:
        return {}, {}
    baselines = {
        f"baseline_{name}": scores.metrics["accuracy"].value
        for name, scores in result.baselines.items()
    }
    possible = possible_metrics(result.outcomes.questions)
    reasons = {
        name: each for name, each in result.outcomes.not_computed.items() if name in possible
    }
    metrics = metrics_of(result.scores) | baselines | dict(result.above_blind)
    return metrics, {**reasons_of(reasons), **others}
