"""``python -m lavis_ext.evaluation.gqa --questions F --predictions F [--choices F] ...``."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict

from lavis_ext.errors import command
from lavis_ext.evaluation.gqa.inputs import (
    add_prediction_options,
    add_question_options,
    check_options,
    outcomes_of,
    read_reference,
)
from lavis_ext.evaluation.gqa.scores import score
from lavis_ext.evaluation.gqa.tables import scores_table
from lavis_ext.files import write_json


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score predictions by all of GQA's metrics that the files given allow."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_options(arguments)
    reference = read_reference(arguments.questions, consistency=arguments.consistency)
    outcomes = outcomes_of(reference, arguments)
    scores = score(outcomes, arguments.resamples, arguments.seed)
    print(scores_table(scores))
    if arguments.json is not None:
        write_json(arguments.json, asdict(scores))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.gqa",
        description="Score predictions on GQA as its authors' evaluation script does.",
    )
    add_prediction_options(parser)
    add_question_options(parser)
    return parser


if __name__ == "__main__":
    main()
