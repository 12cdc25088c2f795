"""Blind guesses: the training split's most frequent answers."""

from lavis_ext.datasets.questions.table import QuestionTable
from lavis_ext.datasets.questions.vocabulary import AnswerVocabulary


def baseline_answers(
    table: QuestionTable, vocabulary: AnswerVocabulary
) -> dict[str, dict[str, str]]:
    """Answers by id of each of ``metrics.BASELINES``; for forms see ``QuestionTable.forms``."""
    ids = table.columns["question_id"].to_pylist()
    forms = table.forms().to_pylist()
    return {
        "overall": dict.fromkeys(ids, vocabulary.overall),
        "form": {name: vocabulary.guess(form) for name, form in zip(ids, forms, strict=True)},
    }
