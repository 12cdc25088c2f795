"""The answer vocabulary, and the most frequent answers as blind baselines."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lavis_ext.datasets.questions.table import QuestionTable

OUTSIDE = -1
"""Target class of an answer outside the vocabulary."""
ROWS_AT_A_TIME = 2**20


@dataclass(frozen=True)
class AnswerVocabulary:
    """The training split's answers, sorted by frequency, then alphabetically.

    Attributes:
        answers: answers; an answer's index is its class.
        overall: most frequent answer of the split.
        by_form: most frequent answer of each form of question (``QuestionTable.forms``).
            ``overall`` and ``by_form`` are the baselines reported in evaluations.
    """

    answers: Sequence[str]
    overall: str
    by_form: dict[str, str]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # JSON turns the tuple into a list; convert it back so that round trips are equal.
        object.__setattr__(self, "answers", tuple(self.answers))
        object.__setattr__(self, "_index", {answer: i for i, answer in enumerate(self.answers)})

    def __len__(self) -> int:
        return len(self.answers)

    @classmethod
    def from_table(cls, table: QuestionTable, size: int) -> "AnswerVocabulary":
        """The ``size`` most frequent answers of ``table``."""
        return cls.from_tables([table], size)

    @classmethod
    def from_tables(
        cls, tables: Iterable[QuestionTable], size: int, *, min_count: int = 1
    ) -> "AnswerVocabulary":
        """The ``size`` most frequent answers of all ``tables`` that occur at least ``min_count``
        times."""
        overall: Counter[str] = Counter()
        by_form: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for table in tables:
            for form, answer, count in _counted(table):
                overall[answer] += count
                by_form[form][answer] += count
        ranked = _most_frequent_first(overall)
        return cls(
            answers=tuple(answer for answer in ranked[:size] if overall[answer] >= min_count),
            overall=ranked[0] if ranked else "",
            by_form={form: _most_frequent_first(counts)[0] for form, counts in by_form.items()},
        )

    def coverage(self, table: QuestionTable) -> tuple[int, int]:
        """Number of a table's answers in the vocabulary, and number of all of its answers."""
        codes, answers = table.encoded("answer")
        counts = np.bincount(codes[codes >= 0], minlength=len(answers))
        known = [answer in self._index for answer in answers]
        return int(counts[known].sum()) if answers else 0, int(counts.sum())

    @classmethod
    def from_dict(cls, given: Any) -> "AnswerVocabulary":
        """Inverse of ``as_dict``. Raises KeyError or TypeError for invalid content."""
        answers, overall, by_form = (given[name] for name in ("answers", "overall", "by_form"))
        texts = [*answers, overall, *by_form, *(by_form[form] for form in by_form)]
        if not isinstance(answers, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise TypeError("a vocabulary that isn't of texts")
        return cls(answers, overall, dict(by_form))

    def as_dict(self) -> dict[str, Any]:
        """Plain containers for ``from_dict``."""
        return {"answers": self.answers, "overall": self.overall, "by_form": self.by_form}

    def targets(self, answers: Sequence[str | None]) -> torch.Tensor:
        """Classes, int64 [len(answers)]; ``OUTSIDE`` for an answer outside the vocabulary."""
        classes = [OUTSIDE if a is None else self._index.get(a, OUTSIDE) for a in answers]
        return torch.tensor(classes, dtype=torch.long)

    def guess(self, form: str) -> str:
        """The form's most frequent answer, or the split's for an unknown form."""
        return self.by_form.get(form, self.overall)


def _counted(table: QuestionTable) -> Iterator[tuple[str, str, int]]:
    """Yield co-occurring forms and answers with their counts."""
    answer_codes, answers = table.encoded("answer")
    form_codes, forms = table.encoded("form")
    for start in range(0, len(table), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        answered = answer_codes[rows] >= 0
        pairs = form_codes[rows][answered] * np.int64(len(answers)) + answer_codes[rows][answered]
        for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
            form, answer = divmod(int(pair), len(answers))
            yield forms[form], answers[answer], int(count)


def _most_frequent_first(counts: Counter[str]) -> list[str]:
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
