"""Answer accuracy, beside what a blind guess would score on the same questions."""

from collections.abc import Mapping

import numpy as np

from lavis_ext.datasets.question_table import QuestionTable
from lavis_ext.datasets.vocabulary import AnswerVocabulary


def answer_accuracy(table: QuestionTable, predictions: Mapping[str, str]) -> dict[str, float]:
    """The share of questions whose predicted answer is the right one, over all and by type.

    GQA's authors compare answers as they stand (Hudson and Manning, 2019, evaluation script).

    Args:
        table: the questions of the split.
        predictions: answers by question id; a question without one counts as wrong.

    Returns:
        ``answer_accuracy`` and, where the questions have types, ``answer_accuracy_<structural>``.
        Questions without an answer (GQA's test split) are left out; without any the dict is empty.
    """
    right = _equal(table, [predictions.get(i) for i in table.columns["question_id"].to_pylist()])
    figures = _mean("answer_accuracy", right)
    structural = np.array(table.columns["structural"].to_pylist(), dtype=object)
    for kind in sorted(kind for kind in set(structural) if kind is not None):
        figures |= _mean(f"answer_accuracy_{kind}", right[structural == kind])
    return figures


def baseline_accuracy(table: QuestionTable, vocabulary: AnswerVocabulary) -> dict[str, float]:
    """Accuracy of always giving the training split's most frequent answer, overall and by form.

    Returns:
        ``baseline_overall`` and ``baseline_form``; empty for a split without answers.
    """
    overall = _equal(table, [vocabulary.overall] * len(table))
    by_form = _equal(table, [vocabulary.guess(form) for form in table.forms().to_pylist()])
    return _mean("baseline_overall", overall) | _mean("baseline_form", by_form)


def _equal(table: QuestionTable, guesses: list[str | None]) -> np.ndarray:
    """Float [rows]: 1 for a right guess, 0 for a wrong one, NaN without a known answer."""
    answers = table.columns["answer"].to_pylist()
    return np.array(
        [
            np.nan if answer is None else float(answer == guess)
            for answer, guess in zip(answers, guesses, strict=True)
        ]
    )


def _mean(name: str, right: np.ndarray) -> dict[str, float]:
    known = right[~np.isnan(right)]
    return {name: float(known.mean())} if len(known) else {}
