"""``python -m lavis_ext.evaluation.leaderboard --questions F --predictions F [F ...] --out F``.

GQA's server scores splits without public answers: test, challenge, and submission, which contains
all others. It accepts a file only if it has each of the split's questions exactly once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import command
from lavis_ext.common.logs import log_to_stderr
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.evaluation.gqa.predictions import (
    check_complete,
    check_known,
    check_output,
    read_predictions,
    write_predictions,
)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Merge files of predictions into one complete file for the server."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.leaderboard",
        description="Write a file for GQA's server, or list the missing predictions.",
    )
    parser.add_argument(
        "--questions",
        type=path_argument,
        required=True,
        help="all questions of the split, such as submission_all_questions.json",
    )
    parser.add_argument(
        "--predictions",
        type=path_argument,
        nargs="+",
        required=True,
        help='lists of {"questionId": ..., "prediction": ...} without duplicates',
    )
    parser.add_argument("--out", type=path_argument, required=True, help="file to write")
    arguments = parser.parse_args(argv)
    log_to_stderr()
    check_output("--out", arguments.out)
    predictions = complete_predictions(arguments.questions, arguments.predictions)
    write_predictions(arguments.out, predictions)
    print(f"Wrote {arguments.out}: {len(predictions):,} questions, each of them once.")


def complete_predictions(questions: Path, predictions: Sequence[Path]) -> dict[str, str]:
    """Merge answers by id to all of a split's questions, in the split's order.

    Raises UserError as reading the files does, and for missing or unknown questions.
    """
    given = read_predictions(*predictions)
    ids = read_questions(questions).data["question_id"].to_pylist()
    source = ", ".join(map(str, predictions))
    check_known(source, given, frozenset(ids), str(questions))
    check_complete(source, ids, given, "prediction")
    return {name: given[name] for name in ids}
