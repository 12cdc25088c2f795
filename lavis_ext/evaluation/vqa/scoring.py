"""Score answers to a split's questions, and blind baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lavis_ext.datasets.questions.answers import answers_in
from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary
from lavis_ext.datasets.vqa.dataset import Benchmark
from lavis_ext.evaluation.above_blind import above_blind
from lavis_ext.evaluation.bootstrap import Score, Values, mean_scores
from lavis_ext.evaluation.question_only import QuestionOnly
from lavis_ext.evaluation.vqa.accuracy import (
    direct_answer_accuracy,
    one_answer_accuracy,
    vqa_accuracy,
)
from lavis_ext.evaluation.vqa.metrics import ACCURACY, ANSWER_TYPES

RULES: Mapping[Benchmark, Callable[[str, Sequence[str]], float]] = {
    Benchmark.VQA: vqa_accuracy,
    Benchmark.VIZWIZ: vqa_accuracy,
    Benchmark.AOKVQA: direct_answer_accuracy,
    Benchmark.OWN: one_answer_accuracy,
}
BREAKDOWNS = ("answer_type", "question_type")


@dataclass(frozen=True, slots=True)
class VqaQuestion:
    """A scored question.

    Attributes:
        id, image_id, text: question id, image id and text.
        answers: people's answers, in order.
        answer: the most frequent answer.
        answer_type, question_type: types; None if missing.
    """

    id: str
    image_id: str
    text: str
    answers: tuple[str, ...]
    answer: str
    answer_type: str | None
    question_type: str | None


@dataclass(frozen=True)
class VqaScores:
    """Accuracy of one set of predictions.

    Attributes:
        questions, images: numbers of scored questions and images.
        accuracy: accuracy of all questions.
        breakdowns: accuracy by kind of question, for each of ``BREAKDOWNS`` in the data.
    """

    questions: int
    images: int
    accuracy: Score
    breakdowns: Mapping[str, Mapping[str, Score]]

    def metrics(self) -> dict[str, float]:
        """Metrics by their names in runs."""
        by_type = self.breakdowns.get("answer_type", {})
        named = {ANSWER_TYPES[kind]: each.value for kind, each in by_type.items() if kind in NAMED}
        return {ACCURACY: self.accuracy.value} | named


NAMED = frozenset(ANSWER_TYPES)


@dataclass(frozen=True)
class VqaResult:
    """Answers to a split's questions and their scores.

    Attributes:
        questions: scored questions.
        predictions: predicted answers in the same order.
        scores: scores of the predictions.
        baselines: scores of blind baselines by name.
        shown: indices of the questions in the report.
        blind: answers of a question-only answerer in the same order; None for none.
        above_blind: metrics of the comparison with it (``above_blind``).
    """

    questions: Sequence[VqaQuestion]
    predictions: Sequence[str]
    scores: VqaScores
    baselines: Mapping[str, VqaScores] = field(default_factory=dict)
    shown: Sequence[int] = ()
    blind: Sequence[str] | None = None
    above_blind: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Content of ``SPLIT_scores.json``."""
        return asdict(self.scores)


def scored_questions(table: QuestionTable, benchmark: Benchmark) -> list[VqaQuestion]:
    """Questions of a table that have answers.

    A-OKVQA's that are ``difficult_direct_answer`` aren't scored by direct answers.
    """
    rows = np.flatnonzero(table.codes("answer") >= 0)
    texts = table.texts(rows, "question_id", "image_id", "question", "answer", "detailed")
    found = []
    for row, name, image, text, answer, kind in zip(rows, *texts, strict=True):
        record = table.structure(row)
        if benchmark is Benchmark.AOKVQA and record.get("difficult_direct_answer") is True:
            continue
        answer_type = record.get("answer_type")
        found.append(
            VqaQuestion(
                id=name,
                image_id=image,
                text=text,
                answers=tuple(answers_in(record)),
                answer=answer,
                answer_type=answer_type if isinstance(answer_type, str) else None,
                question_type=kind,
            )
        )
    return found


def accuracies(
    questions: Sequence[VqaQuestion], predictions: Sequence[str], benchmark: Benchmark
) -> Values:
    """Accuracy [N] of each prediction, by the benchmark's rule."""
    rule = RULES[benchmark]
    pairs = zip(questions, predictions, strict=True)
    return np.array([rule(given, each.answers) for each, given in pairs], np.float64)


def score(
    questions: Sequence[VqaQuestion],
    predictions: Mapping[str, str],
    benchmark: Benchmark,
    resamples: int = 0,
    seed: int = 0,
) -> VqaScores:
    """Accuracy of predictions by id, with 95 % intervals over images unless ``resamples`` is 0."""
    right = accuracies(questions, [predictions[each.id] for each in questions], benchmark)
    values: dict[tuple[str, str], Values] = {(ACCURACY, ""): right}
    for breakdown in BREAKDOWNS:
        kinds = np.array([getattr(each, breakdown) for each in questions], dtype=object)
        for kind in sorted({each for each in kinds if each is not None}):
            values[breakdown, kind] = np.where(kinds == kind, right, np.nan)
    images = [question.image_id for question in questions]
    scores = mean_scores(values, images, resamples, seed)
    by_breakdown = {
        breakdown: {kind: each for (part, kind), each in scores.items() if part == breakdown}
        for breakdown in BREAKDOWNS
    }
    return VqaScores(
        questions=len(questions),
        images=len(set(images)),
        accuracy=scores[ACCURACY, ""],
        breakdowns={name: kinds for name, kinds in by_breakdown.items() if kinds},
    )


class VqaScorer:
    """Scores answers to a table's questions in repeated evaluations."""

    def __init__(self, table: QuestionTable, benchmark: Benchmark) -> None:
        self._table = table
        self._benchmark = benchmark
        self.questions = scored_questions(table, benchmark)
        self._baselines: dict[str, VqaScores] | None = None

    def result(
        self,
        predictions: Mapping[str, str],
        vocabulary: AnswerVocabulary | None,
        *,
        resamples: int,
        shown: int,
        seed: int,
        answerer: QuestionOnly | None = None,
    ) -> VqaResult:
        """Score answers by id, with a sample of ``shown`` questions for the report.

        ``answerer`` is a question-only answerer to compare with.
        """
        if self._baselines is None:
            self._baselines = {} if vocabulary is None else self._guessed(vocabulary)
        order = np.random.default_rng(seed).permutation(len(self.questions))
        given = [predictions[question.id] for question in self.questions]
        baselines, blind, difference = self._baselines, None, {}
        if answerer is not None:
            blind = answerer.predict([question.text for question in self.questions])
            ids = [question.id for question in self.questions]
            guesses = dict(zip(ids, blind, strict=True))
            baselines = {**baselines, "blind": score(self.questions, guesses, self._benchmark)}
            own, other = (accuracies(self.questions, e, self._benchmark) for e in (given, blind))
            images = [question.image_id for question in self.questions]
            difference = above_blind(own, other, images, resamples, seed)
        return VqaResult(
            questions=self.questions,
            predictions=given,
            scores=score(self.questions, predictions, self._benchmark, resamples, seed),
            baselines=baselines,
            blind=blind,
            above_blind=difference,
            shown=sorted(order[:shown].tolist()),
        )

    def _guessed(self, vocabulary: AnswerVocabulary) -> dict[str, VqaScores]:
        ids = self._table.columns["question_id"].to_pylist()
        forms = self._table.forms().to_pylist()
        guesses = {
            "overall": dict.fromkeys(ids, vocabulary.overall),
            "form": {n: vocabulary.guess(form) for n, form in zip(ids, forms, strict=True)},
        }
        return {
            name: score(self.questions, each, self._benchmark) for name, each in guesses.items()
        }
