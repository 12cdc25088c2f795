"""WUPS by the formula of Malinowski and Fritz (NIPS 2014, section 4)."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.wups import similarity, wups


class Sense:
    """A word's sense, with Wu-Palmer similarities to others by name."""

    def __init__(self, name: str, **similar: float) -> None:
        self.name, self.similar = name, similar

    def wup_similarity(self, other: "Sense") -> float | None:
        return self.similar.get(other.name)


def wordnet(**senses: list[Sense]) -> Any:
    return SimpleNamespace(synsets=lambda word: senses.get(word, []))


def test_similarities_below_the_threshold_count_a_tenth() -> None:
    assert wups([1.0, 0.9, 0.8], 0.9) == pytest.approx((1.0 + 0.9 + 0.08) / 3)
    assert wups([1.0, 0.9, 0.8], 0.0) == pytest.approx(0.9)


def test_the_closest_senses_count() -> None:
    senses = wordnet(
        chair=[Sense("seat", couch=0.9, bed=0.5), Sense("professor", couch=0.3)],
        sofa=[Sense("bed"), Sense("couch")],
    )
    assert similarity("chair", "sofa", senses) == 0.9


def test_equal_answers_need_no_senses() -> None:
    assert similarity("image 7", "image 7", wordnet()) == 1.0


def test_answers_without_related_senses_are_far() -> None:
    assert similarity("chair", "garbage bin", wordnet(chair=[Sense("seat")])) == 0.0
    assert similarity("chair", "red", wordnet(chair=[Sense("seat")], red=[Sense("hue")])) == 0.0


def test_names_of_several_words_are_looked_up_with_underscores() -> None:
    senses = wordnet(garbage_bin=[Sense("bin", bucket=0.8)], bucket=[Sense("bucket")])
    assert similarity("garbage bin", "bucket", senses) == 0.8
