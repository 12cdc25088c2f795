"""VQA's tasks ``vqa_fusion`` and ``vqa_reading_comprehension_fusion``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lavis_ext import distributed
from lavis_ext.common.metrics import Metric, by_name
from lavis_ext.datasets.vqa.dataset import Benchmark
from lavis_ext.evaluation.above_blind import AT_THE_END, BLIND
from lavis_ext.evaluation.bootstrap import Values
from lavis_ext.evaluation.by_image import ByImage
from lavis_ext.evaluation.report.content import ReportedSplit
from lavis_ext.evaluation.vqa.metrics import ACCURACY, ANSWER_TYPES, BESIDE, SCORED, headline
from lavis_ext.evaluation.vqa.predictions import write_results
from lavis_ext.evaluation.vqa.reported import reported
from lavis_ext.evaluation.vqa.scoring import VqaResult, VqaScorer, accuracies
from lavis_ext.registry import registry
from lavis_ext.tasks.base import EvalStep, Evaluation, Splits, Totals, gathered
from lavis_ext.tasks.questions import (
    HEAD_ACCURACY,
    HEAD_OUTSIDE,
    OUTSIDE,
    QuestionTask,
    pipeline_averages,
    pipeline_sums,
)


@registry.register_task("vqa_fusion")
class VqaFusionTask(QuestionTask):
    """Trains a fusion network on VQA and scores its answers by VQA accuracy.

    Each data set is scored by its benchmark's rules; predictions are in its server's format.
    Metrics of answer types that a data set lacks are left out.
    """

    # Test splits have no public answers; they are answered only if named in run.test_splits.
    splits = Splits(train=("train",), valid=("val",), test=())
    default_metric = ACCURACY

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._scorers: dict[Any, VqaScorer] = {}
        self._dataset: Any = None
        self._final = False

    def metrics(self, model: Any) -> list[Metric]:
        """The model's metrics, and VQA's if it answers."""
        own = by_name(super().metrics(model))
        return [*(own | by_name([*SCORED, *BESIDE]) if self.predicts() else own).values()]

    def not_computed(self, model: Any, dataset: Any) -> dict[str, str]:
        """Reasons why validations of this split lack some of ``metrics``, by name."""
        scorer = self._scorer(dataset)
        reasons = {HEAD_OUTSIDE: "validations have answers_outside_vocabulary"}
        reasons[HEAD_ACCURACY] = f"validations have {ACCURACY}"
        if not scorer.questions:
            unknown = "no question that is scored has a known answer"
            return reasons | dict.fromkeys([metric.name for metric in SCORED], unknown)
        types = {question.answer_type for question in scorer.questions}
        absent = [name for kind, name in ANSWER_TYPES.items() if kind not in types]
        absences = dict.fromkeys(absent, "no question has that answer type")
        return reasons | absences | AT_THE_END

    def before_evaluation(self, model: Any, dataset: Any, **kwargs: Any) -> None:
        """Store whether the evaluation is ``final``, since only those have intervals."""
        self._dataset = dataset
        self._final = bool(kwargs.get("final"))

    def after_evaluation(self, val_result: Totals, dataset: Any, model: Any) -> Evaluation:
        """Metrics over all processes' shares. Called by every process."""
        means = self.means(val_result, model)
        if OUTSIDE in means:
            # The head can't distinguish missing answers from those outside its vocabulary.
            means[OUTSIDE] -= np.count_nonzero(dataset.table.codes("answer") < 0)
        predictions = gathered(val_result, "predictions")
        result, reasons = None, {}
        if predictions and distributed.is_main_process() and self._scorer(dataset).questions:
            options = self.config.task
            answerer, lacking = self.question_only() if self._final else (None, "")
            reasons = {BLIND: lacking} if lacking else {}
            result = self._scorer(dataset).result(
                predictions,
                model.vocabulary,
                resamples=options.resamples if self._final else 0,
                shown=options.report_examples if self._final and self.config.run.report else 0,
                seed=self.config.run.seed,
                answerer=answerer,
            )
        metrics, reasons = distributed.broadcast((_metrics_of(result), reasons))
        scores = None if result is None else result.as_dict()
        return Evaluation(metrics | means, predictions, reasons, scores, result)

    def write_predictions(self, path: Path, predictions: Mapping[str, Any]) -> None:
        """Write answers in the format of the data set's server."""
        write_results(path, _benchmark(self._dataset), predictions)

    def by_image(self, dataset: Any, evaluation: Evaluation) -> ByImage | None:
        """VQA accuracy by image."""
        result: VqaResult | None = evaluation.details
        if result is None:
            return None

        def right(answers: Sequence[str]) -> dict[str, Values]:
            return {ACCURACY: accuracies(result.questions, answers, _benchmark(dataset))}

        images = [each.image_id for each in result.questions]
        blind = None if result.blind is None else right(result.blind)
        return ByImage.of(right(result.predictions), images, blind)

    def headline(self, split: str, metrics: Mapping[str, float]) -> str:
        """Accuracy against the baselines."""
        return headline(split, metrics)

    def reported(
        self, split: str, dataset: Any, model: Any, evaluation: Evaluation
    ) -> ReportedSplit:
        """Accuracy with intervals and baselines, by kind of question, confusions, examples."""
        declared = by_name(self.metrics(model))
        result: VqaResult | None = evaluation.details
        return reported(split, evaluation.metrics, result, dataset.images, declared)

    def _scorer(self, dataset: Any) -> VqaScorer:
        """Scorer of a data set, cached."""
        if dataset not in self._scorers:
            self._scorers[dataset] = VqaScorer(dataset.table, _benchmark(dataset))
        return self._scorers[dataset]


@registry.register_task("vqa_reading_comprehension_fusion")
class VqaReadingComprehensionFusionTask(VqaFusionTask):
    """Scores a fusion network by the pipeline's answers, without training."""

    takes_features = False
    answering = True

    def metrics(self, model: Any) -> list[Metric]:
        """VQA's metrics, and averages over the pipeline's steps."""
        return [*SCORED, *BESIDE, *pipeline_averages(model)]

    def valid_step(self, model: Any, samples: Any) -> EvalStep:
        """Sums and count of a batch, and the pipeline's answers by question id."""
        output = model.answer(samples)
        answers = dict(zip(samples["ids"], output.answers, strict=True))
        return EvalStep(pipeline_sums(model, output), len(answers), {"predictions": answers})


def _benchmark(dataset: Any) -> Benchmark:
    """Benchmark whose rules apply; GQA's data count as custom data."""
    found: Benchmark = getattr(dataset, "benchmark", Benchmark.OWN)
    return found


def _metrics_of(result: VqaResult | None) -> dict[str, float]:
    if result is None:
        return {}
    guesses = {f"baseline_{name}": each.accuracy.value for name, each in result.baselines.items()}
    return result.scores.metrics() | guesses | dict(result.above_blind)
