"""``python -m lavis_ext.evaluation.leaderboard --questions F --predictions F [F ...] --out F``.

GQA's server scores splits whose answers aren't public: test, challenge, and submission, which holds
all others too. It takes a file only if it has each of the split's questions once.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lavis_ext.common.errors import command
from lavis_ext.datasets.gqa.questions import read_questions
from lavis_ext.evaluation.gqa.predictions import (
    check_output,
    read_predictions,
    refuse_missing,
    refuse_unknown,
    write_predictions,
)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write one complete file for the server, of one or several files of predictions."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.leaderboard",
        description="Write the file that GQA's server takes, or say what is missing from it.",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        help="all questions of the split, such as submission_all_questions.json",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        required=True,
        help='lists of {"questionId": ..., "prediction": ...}, none of them twice',
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_output("--out", arguments.out)
    predictions = complete_predictions(arguments.questions, arguments.predictions)
    write_predictions(arguments.out, predictions)
    print(f"Wrote {arguments.out}: {len(predictions):,} questions, each of them once.")


def complete_predictions(questions: Path, predictions: Sequence[Path]) -> dict[str, str]:
    """Answers by id to all of a split's questions, in the split's order.

    Raises UserError as reading either does, and for predictions that lack a question or have one
    that the split lacks.
    """
    given = read_predictions(*predictions)
    ids = read_questions(questions).data["question_id"].to_pylist()
    source = ", ".join(map(str, predictions))
    refuse_unknown(source, given, frozenset(ids), str(questions))
    refuse_missing(source, ids, given, "prediction")
    return {name: given[name] for name in ids}
