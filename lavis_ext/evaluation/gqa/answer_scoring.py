"""Score a task's answers in repeated evaluations of the same data sets."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.above_blind import AT_THE_END, above_blind
from lavis_ext.evaluation.gqa.baselines import baseline_answers
from lavis_ext.evaluation.gqa.metrics import SCORED, metrics_of, reasons_of
from lavis_ext.evaluation.gqa.outcomes import Outcomes
from lavis_ext.evaluation.gqa.result import SplitResult, Trace
from lavis_ext.evaluation.gqa.scorer import NEEDING_CHOICES, GqaScorer
from lavis_ext.evaluation.gqa.scores import GqaScores, score
from lavis_ext.evaluation.question_only import QuestionOnly


class AnswerScoring:
    """Computes GQA's metrics of answers and of blind baselines.

    Args:
        config: the run's config; its section ``task`` has ``full_metrics``, ``resamples`` and
            ``report_examples``.
        no_grounding: reason for missing attention maps; empty if the task has some.

    Attributes:
        final: whether the current evaluation is a split's last one.
        shown: ids of the questions in the report of the current evaluation.
    """

    def __init__(self, config: Any, no_grounding: str) -> None:
        self._run = config.run
        self._options = config.task
        self._no_grounding = no_grounding
        self._scorers: dict[GqaFusionDataset, GqaScorer] = {}
        self._baselines: dict[GqaFusionDataset, dict[str, GqaScores]] = {}
        self.final = False
        self.shown: frozenset[str] = frozenset()

    def scorer(self, dataset: GqaFusionDataset) -> GqaScorer:
        """Scorer of a data set, cached."""
        if dataset not in self._scorers:
            self._scorers[dataset] = GqaScorer(dataset.table, dataset.files)
        return self._scorers[dataset]

    def not_computed(self, dataset: GqaFusionDataset) -> dict[str, str]:
        """Reasons for GQA's metrics missing from validations of a data set, by name.

        Determined by scoring the correct answers.
        """
        scorer = self.scorer(dataset)
        names = [metric.name for metric in SCORED]
        if not scorer.questions:
            return dict.fromkeys(names, "no question that is scored has a known answer")
        right = {question.id: question.answer for question in scorer.questions}
        outcomes = self._outcomes(scorer, right | scorer.entailed, dict.fromkeys(scorer.boxes, 1.0))
        found = metrics_of(score(outcomes, resamples=0))
        reasons = reasons_of(outcomes.not_computed)
        kind = "no question has a structural type of that kind"
        missing = {name: reasons.get(name, kind) for name in names if name not in found}
        return missing | AT_THE_END

    def begin(self, dataset: GqaFusionDataset, *, final: bool) -> None:
        """Begin an evaluation; a ``final`` one draws the questions for its report."""
        self.final = final
        size = self._options.report_examples if final and self._run.report else 0
        ids = [question.id for question in self.scorer(dataset).questions] if size else []
        # Before answering, and independent of the number of processes.
        chosen = np.random.default_rng(self._run.seed).permutation(len(ids))[:size]
        self.shown = frozenset(ids[place] for place in chosen)

    def result(
        self,
        dataset: GqaFusionDataset,
        vocabulary: AnswerVocabulary | None,
        predictions: Mapping[str, str],
        grounding: Mapping[str, float],
        traces: Mapping[str, Trace],
        answerer: QuestionOnly | None = None,
    ) -> SplitResult:
        """Score the answers to all questions of a data set.

        Args:
            dataset: the questions; the balanced ones are scored.
            vocabulary: source of the blind baselines; None for no baselines.
            predictions: the answers.
            grounding: scores of attention maps, by id.
            traces: intermediate results of the answers in ``shown``.
            answerer: a question-only answerer to compare with; None for none.
        """
        scorer = self.scorer(dataset)
        if dataset not in self._baselines and vocabulary is not None:
            self._baselines[dataset] = {
                name: score(scorer.outcomes(guesses, read_files=False), resamples=0)
                for name, guesses in baseline_answers(scorer.table, vocabulary).items()
            }
        outcomes = self._outcomes(scorer, predictions, grounding)
        resamples = self._options.resamples if self.final else 0
        baselines = self._baselines.get(dataset, {})
        blind, difference = None, {}
        if answerer is not None:
            ids, texts = (scorer.table.columns[n].to_pylist() for n in ("question_id", "question"))
            guesses = dict(zip(ids, answerer.predict(texts), strict=True))
            blind = scorer.outcomes(guesses, read_files=False)
            baselines = {**baselines, "blind": score(blind, resamples=0)}
            own, other = (each.values["accuracy"] for each in (outcomes, blind))
            images = [question.image_id for question in scorer.questions]
            difference = above_blind(own, other, images, resamples, self._run.seed)
        return SplitResult(
            outcomes=outcomes,
            scores=score(outcomes, resamples, self._run.seed),
            baselines=baselines,
            blind=blind,
            above_blind=difference,
            shown=[question.id for question in scorer.questions if question.id in self.shown],
            traces=traces,
        )

    def _outcomes(
        self, scorer: GqaScorer, predictions: Mapping[str, str], grounding: Mapping[str, float]
    ) -> Outcomes:
        always = self._options.full_metrics == "always" or self._run.metric in NEEDING_CHOICES
        return scorer.outcomes(
            predictions,
            grounding=None if self._no_grounding else grounding,
            no_grounding=self._no_grounding,
            read_files=self.final or always,
        )
