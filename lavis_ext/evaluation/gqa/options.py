"""Options of the commands that score predictions."""

import argparse

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError
from lavis_ext.evaluation.bootstrap import FEWEST_RESAMPLES, RESAMPLES
from lavis_ext.evaluation.gqa.predictions import check_output

ATTENTIONS_HELP = (
    'list of {"questionId": ..., "attention": ...}, for grounding: spatial maps of any one size, '
    "the first index running from left to right"
)


def add_prediction_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options for predictions and for grounding."""
    parser.add_argument(
        "--predictions",
        type=path_argument,
        required=required,
        help='list of {"questionId": ..., "prediction": ...}',
    )
    parser.add_argument("--attentions", type=path_argument, help=ATTENTIONS_HELP)
    add_grounding_options(parser)


def add_grounding_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for grounding besides attentions."""
    parser.add_argument("--scenes", type=path_argument, help="scene graphs, for grounding")
    parser.add_argument(
        "--objectFeatures",
        dest="object_features",
        action="store_true",
        help="attentions are regions, [x0, y0, x1, y1, attention] each",
    )
    parser.add_argument(
        "--mapSize",
        dest="map_size",
        type=int,
        help="reject spatial maps with a side other than this",
    )


def add_question_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options for questions, choices, consistency, comparison and intervals."""
    parser.add_argument(
        "--questions",
        type=path_argument,
        required=required,
        help="questions of the split, a file or a folder",
    )
    parser.add_argument(
        "--choices", type=path_argument, help="choices file, for validity and plausibility"
    )
    parser.add_argument(
        "--consistency",
        action="store_true",
        help="also score entailed questions; needs the file of all questions, and predictions of "
        "the entailed ones",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help="draws of the bootstrap; 0 for no intervals (%(default)s)",
    )
    parser.add_argument(
        "--only-asked",
        action="store_true",
        help="score the questions that have a prediction, however few; predictions in a run's "
        "folder need no such option, because the run states how many were asked",
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="ignore capitals, extra spaces and an end mark (., ! or ?) of answers; GQA's authors "
        "don't",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument("--json", type=path_argument, help="also write the metrics to this file")


def check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that would otherwise fail after reading all files."""
    if arguments.resamples != 0 and arguments.resamples < FEWEST_RESAMPLES:
        raise UserError(
            f"--resamples is {arguments.resamples}; it must be 0, for no intervals, or at least "
            f"{FEWEST_RESAMPLES}."
        )
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; it must not be negative.")
    if arguments.json is not None:
        check_output("--json", arguments.json)
