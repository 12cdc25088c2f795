"""Count confusions between answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

MOST_ANSWERS = 12
MOST_PAIRS = 15


@dataclass(frozen=True)
class Confusions:
    """Confusion matrix of the most confused answers.

    Attributes:
        answers: K answers with the most mistakes, as correct or predicted answer.
        counts: [K][K], by correct (row) and predicted (column) answer.
        pairs: most frequent mistakes as (correct, predicted, count), also of other answers.
    """

    answers: Sequence[str]
    counts: Sequence[Sequence[int]]
    pairs: Sequence[tuple[str, str, int]]


def confusions(right: Sequence[str], given: Sequence[str]) -> Confusions:
    """Count mistakes among answers [N]; ties are sorted alphabetically."""
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
