"""VQA accuracy (Antol et al., ICCV 2015), and A-OKVQA's for direct answers."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from lavis_ext.registry import vqa_eval_class

ENOUGH = 3
"""Number of people who must agree with an answer for full accuracy."""


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official script's accuracy of a prediction, from 0 to 1.

    It is the mean of min(1, others who agree / 3) over all ways to leave out one person's answer.
    As in the script since 2021 (GT-Vision-Lab/VQA, vqaEval.py), prediction and answers are
    processed if the answers differ, and compared as they stand if all people agree. LAVIS's copy
    is older: it always processes the prediction, and of the answers only the punctuation. The
    script leaves out all annotations equal to a person's; VQA's are numbered, so that is one.
    """
    given, answers = _stripped(prediction), [_stripped(answer) for answer in answers]
    if len(set(answers)) > 1:
        given, answers = processed(given), [processed(answer) for answer in answers]
    agreeing = [answer == given for answer in answers]
    others = (sum(agreeing) - agrees for agrees in agreeing)
    return float(sum(min(1, float(count) / ENOUGH) for count in others)) / len(answers)


def one_answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy; with a single answer, equality of the processed texts as 1 or 0."""
    if len(answers) == 1:
        return float(processed(prediction) == processed(answers[0]))
    return vqa_accuracy(prediction, answers)


def right_by_vqa_rules(prediction: str, answer: str) -> bool:
    """Whether the processed prediction is the answer as it stands, so "the dog" is "dog".

    GQA's accuracy in LAVIS (tasks/vqa_reading_comprehension.py: GQARCTask); GQA's authors compare
    the texts without processing.
    """
    return processed(prediction) == answer


def direct_answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """A-OKVQA's accuracy: min(1, exact matches / 3) (Schwenk et al., ECCV 2022)."""
    return min(1.0, sum(prediction == answer for answer in answers) / ENOUGH)


def processed(answer: str) -> str:
    """Process an answer as the official script does, by LAVIS's copy of it.

    Lower case, digits for number words, no articles, no punctuation, apostrophes in contractions.
    """
    script = _script()
    text: str = script.processDigitArticle(script.processPunctuation(_stripped(answer)))
    return text


def _stripped(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@cache
def _script() -> Any:
    return vqa_eval_class()()
