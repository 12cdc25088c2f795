"""The answers to choose from, and the answers that a blind guess would give."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lavis_ext.datasets.gqa.question_table import QuestionTable

OUTSIDE = -1
"""Target of an answer that the vocabulary doesn't hold."""
ROWS_AT_A_TIME = 2**20


@dataclass(frozen=True)
class AnswerVocabulary:
    """The training split's answers, most frequent first; equally frequent ones by alphabet.

    Attributes:
        answers: the answers; an answer's place is its class.
        overall: the split's most frequent answer.
        by_form: the most frequent answer for each form of question (``QuestionTable.forms``).
            The last two are the baselines that an evaluation reports beside the model.
    """

    answers: Sequence[str]
    overall: str
    by_form: dict[str, str]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Equal to what it was before JSON made a list of its answers.
        object.__setattr__(self, "answers", tuple(self.answers))
        object.__setattr__(self, "_index", {answer: i for i, answer in enumerate(self.answers)})

    def __len__(self) -> int:
        return len(self.answers)

    @classmethod
    def from_table(cls, table: QuestionTable, size: int) -> "AnswerVocabulary":
        """The ``size`` most frequent answers of ``table``; questions without one don't count."""
        answer_codes, answers = table.encoded("answer")
        form_codes, forms = table.encoded("form")
        overall: Counter[str] = Counter()
        by_form: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for start in range(0, len(table), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            answered = answer_codes[rows] >= 0
            pairs = (
                form_codes[rows][answered] * np.int64(len(answers)) + answer_codes[rows][answered]
            )
            for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
                form, answer = divmod(int(pair), len(answers))
                overall[answers[answer]] += int(count)
                by_form[forms[form]][answers[answer]] += int(count)
        ranked = _most_frequent_first(overall)
        return cls(
            answers=tuple(ranked[:size]),
            overall=ranked[0] if ranked else "",
            by_form={form: _most_frequent_first(counts)[0] for form, counts in by_form.items()},
        )

    @classmethod
    def from_dict(cls, given: Any) -> "AnswerVocabulary":
        """What ``as_dict`` gave. Raises KeyError and TypeError for anything else."""
        answers, overall, by_form = (given[name] for name in ("answers", "overall", "by_form"))
        texts = [*answers, overall, *by_form, *(by_form[form] for form in by_form)]
        if not isinstance(answers, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise TypeError("a vocabulary that isn't of texts")
        return cls(answers, overall, dict(by_form))

    def as_dict(self) -> dict[str, Any]:
        """Plain containers from which the constructor makes an equal vocabulary."""
        return {"answers": self.answers, "overall": self.overall, "by_form": self.by_form}

    def targets(self, answers: Sequence[str | None]) -> torch.Tensor:
        """Classes, int64 [len(answers)]; ``OUTSIDE`` for an answer that isn't in the vocabulary."""
        classes = [OUTSIDE if a is None else self._index.get(a, OUTSIDE) for a in answers]
        return torch.tensor(classes, dtype=torch.long)

    def guess(self, form: str) -> str:
        """The most frequent answer to a question of this form, or of all where it is unknown."""
        return self.by_form.get(form, self.overall)


def _most_frequent_first(counts: Counter[str]) -> list[str]:
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
