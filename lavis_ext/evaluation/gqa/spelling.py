"""Predictions that differ from an answer by capitals, spaces or an end mark alone."""

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

END_MARKS = ".!?"


def normalized(text: str) -> str:
    """``text`` in lower case, with single spaces, and without end marks."""
    return " ".join(text.split()).rstrip(f"{END_MARKS} ").casefold()


def spelled_alike(
    predictions: Mapping[str, str], answers: Mapping[str, str], *, normalize: bool, source: str
) -> dict[str, str]:
    """Predictions by id, with ``normalize`` spelled as the answers are.

    Otherwise logs how many predictions of the file ``source`` are wrong by their spelling alone:
    GQA's authors compare the texts as they stand.

    Args:
        predictions: predictions by id.
        answers: right answers by id, of a part of the predictions.
        normalize: whether capitals, spaces and end marks don't count.
        source: the file, for the message.
    """
    alike = {
        name: answer
        for name, answer in answers.items()
        if predictions[name] != answer and normalized(predictions[name]) == normalized(answer)
    }
    if normalize:
        return {name: normalized(text) for name, text in predictions.items()} | {
            name: answer
            for name, answer in answers.items()
            if name in alike or predictions[name] == answer
        }
    if alike:
        first = next(iter(alike))
        log.warning(
            "%s: %s of %s predictions differ from the answer only by capitals, spaces or an end "
            "mark (%r, not %r) and count as wrong, as by GQA's authors. --normalize counts them "
            "as right.",
            source,
            f"{len(alike):,}",
            f"{len(answers):,}",
            predictions[first],
            answers[first],
        )
    return dict(predictions)
