"""``python -m lavis_ext.evaluation.gqa --questions F --predictions F [--choices F] ...``."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lavis_ext.errors import command
from lavis_ext.evaluation.gqa.inputs import (
    add_question_options,
    check_options,
    read_outcomes,
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
    outcomes = read_outcomes(
        reference,
        arguments.predictions,
        choices=arguments.choices,
        scenes=arguments.scenes,
        attentions=arguments.attentions,
        object_features=arguments.object_features,
    )
    scores = score(outcomes, arguments.resamples, arguments.seed)
    print(scores_table(scores))
    if arguments.json is not None:
        write_json(arguments.json, asdict(scores))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.gqa",
        description="Score predictions on GQA as its authors' evaluation script does.",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help='list of {"questionId": ..., "prediction": ...}',
    )
    add_question_options(parser)
    parser.add_argument("--scenes", type=Path, help="scene graphs, for grounding")
    parser.add_argument(
        "--attentions",
        type=Path,
        help='list of {"questionId": ..., "attention": ...}, for grounding: spatial maps of any '
        "one size, the first index running from left to right",
    )
    parser.add_argument(
        "--objectFeatures",
        dest="object_features",
        action="store_true",
        help="attentions are of regions, [x0, y0, x1, y1, attention] each",
    )
    return parser


if __name__ == "__main__":
    main()
