"""Predictions for a part of a split: the questions that were asked."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from lavis_ext.common.errors import UserError, listed
from lavis_ext.common.files import read_object
from lavis_ext.evaluation.gqa.predictions import check_complete
from lavis_ext.evaluation.gqa.questions import GqaQuestion

log = logging.getLogger(__name__)

PREDICTIONS, SCORES = "_predictions.json", "_scores.json"
"""Ends of the names of a run's files of a split."""


def asked_in_all(
    questions: Sequence[GqaQuestion],
    paths: Sequence[Path],
    given: Sequence[Collection[str]],
    *,
    only_asked: bool,
) -> list[GqaQuestion]:
    """Questions that were asked according to each file of predictions, in order.

    Args:
        questions: scored questions.
        paths: files of predictions.
        given: ids of the predicted questions of each file.
        only_asked: whether files may lack questions without stating how many were asked.

    Raises UserError for a file that lacks questions without stating it (see :func:`stated`), and
    for files without a common question.
    """
    found = list(questions)
    for path, ids in zip(paths, given, strict=True):
        asked = _asked(questions, path, ids, only_asked)
        found = [question for question in found if question.id in asked]
    if not found:
        raise UserError(
            f"{' and '.join(map(str, paths))}: none of the questions was asked in both. Are they "
            "samples of different splits or seeds?"
        )
    if len(found) < len(questions):
        log.info(
            "Scoring the %s of %s questions that were asked.",
            f"{len(found):,}",
            f"{len(questions):,}",
        )
    return found


def stated(predictions: Path) -> int | None:
    """Number of scored questions that a run states beside its predictions; None if it doesn't.

    A run writes both files once all questions of its sample (``run.small_*_size``) are answered.
    """
    if not predictions.name.endswith(PREDICTIONS):
        return None
    scores = predictions.with_name(predictions.name.removesuffix(PREDICTIONS) + SCORES)
    count = (read_object(scores) or {}).get("questions")
    return count if isinstance(count, int) else None


def _asked(
    questions: Sequence[GqaQuestion], path: Path, given: Collection[str], only_asked: bool
) -> set[str]:
    ids = {question.id for question in questions}
    asked = ids.intersection(given)
    if only_asked and asked:
        return asked
    count = stated(path)
    if count == len(asked) and asked:
        return asked
    missing = [question.id for question in questions if question.id not in asked]
    if missing and asked:
        hint = "If they weren't asked, --only-asked scores the others."
        if count is not None:
            hint = f"Its run states that {count:,} were asked, but {len(asked):,} are here. " + hint
        raise UserError(
            f"{path}: no prediction for {len(missing):,} of {len(ids):,} questions "
            f"({listed(missing)}). {hint}"
        )
    check_complete(str(path), [question.id for question in questions], given, "prediction")
    return asked
