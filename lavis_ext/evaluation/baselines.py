"""What a blind guess would answer: the training split's most frequent answers."""

from lavis_ext.datasets.gqa.question_table import QuestionTable
from lavis_ext.datasets.gqa.vocabulary import AnswerVocabulary

BASELINES = ("overall", "form")
"""The most frequent answer of all, and that to questions of the same form."""


def baseline_answers(
    table: QuestionTable, vocabulary: AnswerVocabulary
) -> dict[str, dict[str, str]]:
    """Each baseline's answers to a table's questions, by id (see ``QuestionTable.forms``)."""
    ids = table.columns["question_id"].to_pylist()
    forms = table.forms().to_pylist()
    return {
        "overall": dict.fromkeys(ids, vocabulary.overall),
        "form": {name: vocabulary.guess(form) for name, form in zip(ids, forms, strict=True)},
    }
