"""Which answers are taken for which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST_ANSWERS = 12
MOST_PAIRS = 15


@dataclass(frozen=True)
class Confusions:
    """Right answers against predictions.

    Attributes:
        answers: K answers that are in the most mistakes, be it as the right or as the given one.
        counts: [K][K], how often the answer of the row was right and that of the column given.
        pairs: (right, given, how often), the most frequent mistakes, also with other answers.
    """

    answers: Sequence[str]
    counts: Sequence[Sequence[int]]
    pairs: Sequence[tuple[str, str, int]]


def confusions(right: Sequence[str], given: Sequence[str]) -> Confusions:
    """Count mistakes among answers [N]; ties are in the order of the alphabet."""
    counted = Counter(zip(right, given, strict=True))
    mistakes = {pair: count for pair, count in counted.items() if pair[0] != pair[1]}
    involved: Counter[str] = Counter()
    for pair, count in mistakes.items():
        for answer in pair:
            involved[answer] += count
    answers = [name for name, _ in sorted(involved.items(), key=_most_first)][:MOST_ANSWERS]
    pairs = [(*pair, count) for pair, count in sorted(mistakes.items(), key=_most_first)]
    return Confusions(
        answers=answers,
        counts=[[counted[row, column] for column in answers] for row in answers],
        pairs=pairs[:MOST_PAIRS],
    )


def _most_first(item: tuple[object, int]) -> tuple[int, object]:
    return -item[1], item[0]
