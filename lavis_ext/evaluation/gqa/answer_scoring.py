"""Scores of a task's answers: the same questions again and again, as the config asks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lavis_ext.datasets.gqa.dataset import GqaFusionDataset
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary
from lavis_ext.evaluation.gqa.baselines import baseline_answers
from lavis_ext.evaluation.gqa.metrics import SCORED, metrics_of, reasons_of
from lavis_ext.evaluation.gqa.outcomes import Outcomes
from lavis_ext.evaluation.gqa.result import SplitResult, Trace
from lavis_ext.evaluation.gqa.scorer import NEEDING_CHOICES, GqaScorer
from lavis_ext.evaluation.gqa.scores import GqaScores, score


class AnswerScoring:
    """GQA's metrics of answers, beside those of blind guesses.

    Args:
        config: the run's config; its section ``task`` has ``full_metrics``, ``resamples`` and
            ``report_examples``.
        no_grounding: why the task has no attention maps; empty where it has some.

    Attributes:
        shown: ids of the questions that the report shows, of the evaluation that was begun.
    """

    def __init__(self, config: Any, no_grounding: str) -> None:
        self._run = config.run
        self._options = config.task
        self._no_grounding = no_grounding
        self._scorers: dict[GqaFusionDataset, GqaScorer] = {}
        self._baselines: dict[GqaFusionDataset, dict[str, GqaScores]] = {}
        self._final = False
        self.shown: frozenset[str] = frozenset()

    def scorer(self, dataset: GqaFusionDataset) -> GqaScorer:
        """The scorer of a data set; its questions are read once."""
        if dataset not in self._scorers:
            self._scorers[dataset] = GqaScorer(dataset.table, dataset.files)
        return self._scorers[dataset]

    def not_computed(self, dataset: GqaFusionDataset) -> dict[str, str]:
        """Why validations of a data set lack some of GQA's metrics, by name.

        Those that the right answers would get can be computed.
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
        return {name: reasons.get(name, kind) for name in names if name not in found}

    def begin(self, dataset: GqaFusionDataset, *, final: bool) -> None:
        """Begin an evaluation; choose the questions that the report of a ``final`` one shows."""
        self._final = final
        size = self._options.report_examples if final and self._run.report else 0
        ids = [question.id for question in self.scorer(dataset).questions] if size else []
        # The same questions whatever the number of processes, and before anything is answered.
        chosen = np.random.default_rng(self._run.seed).permutation(len(ids))[:size]
        self.shown = frozenset(ids[place] for place in chosen)

    def result(
        self,
        dataset: GqaFusionDataset,
        vocabulary: AnswerVocabulary | None,
        predictions: Mapping[str, str],
        grounding: Mapping[str, float],
        traces: Mapping[str, Trace],
    ) -> SplitResult:
        """The scores of answers by id to all of a data set's questions.

        Args:
            dataset: the questions, some of which are scored.
            vocabulary: has the blind guesses; None for none.
            predictions: the answers.
            grounding: scores of attention maps, by id.
            traces: how the answers that are ``shown`` came about.
        """
        scorer = self.scorer(dataset)
        if dataset not in self._baselines and vocabulary is not None:
            self._baselines[dataset] = {
                name: score(scorer.outcomes(guesses, read_files=False), resamples=0)
                for name, guesses in baseline_answers(scorer.table, vocabulary).items()
            }
        outcomes = self._outcomes(scorer, predictions, grounding)
        return SplitResult(
            outcomes=outcomes,
            scores=score(outcomes, self._options.resamples if self._final else 0, self._run.seed),
            baselines=self._baselines.get(dataset, {}),
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
            read_files=self._final or always,
        )
