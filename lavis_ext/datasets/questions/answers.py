"""Questions answered by several people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lavis_ext.datasets.questions.values import as_text, is_gap, kind

ANSWERS = ("answer", "answers", "direct_answers")
"""Keys of answers in records: GQA's and LAVIS's, VQA's, A-OKVQA's."""


def answers_in(record: Mapping[str, Any]) -> list[str]:
    """All answers of a record, without blank ones.

    Each is a text, a number, or VQA's ``{"answer": ...}``. Raises TypeError with the key and the
    kind of an invalid value.
    """
    key = next((key for key in ANSWERS if not is_gap(record.get(key))), None)
    if key is None:
        return []
    value = record[key]
    texts = [_text(each, key) for each in (value if isinstance(value, list) else [value])]
    return [text for text in texts if text is not None]


def most_frequent(answers: Sequence[str]) -> str | None:
    """The most frequent answer, the first of tied ones; None for no answers."""
    return Counter(answers).most_common(1)[0][0] if answers else None


def _text(value: Any, key: str) -> str | None:
    if isinstance(value, dict) and "answer" in value:
        value = value["answer"]
    try:
        if is_gap(value):  # among several answers
            raise TypeError(kind(value))
        return as_text(value)
    except TypeError as error:
        raise TypeError(f"`{key}`", str(error)) from None
