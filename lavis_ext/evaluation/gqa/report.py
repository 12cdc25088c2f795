"""``python -m lavis_ext.evaluation.report --questions F --predictions F --out F [--images F] ...``.

For predictions from any source; evaluating a run writes its report automatically.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import write_json
from lavis_ext.common.logs import log_to_stderr
from lavis_ext.datasets.pictures import ImageFolder
from lavis_ext.evaluation.gqa.inputs import outcomes_of, read_reference
from lavis_ext.evaluation.gqa.metrics import ACCURACY, metrics_of
from lavis_ext.evaluation.gqa.options import (
    add_prediction_options,
    add_question_options,
    check_options,
)
from lavis_ext.evaluation.gqa.predictions import check_output
from lavis_ext.evaluation.gqa.reported import reported
from lavis_ext.evaluation.gqa.result import SplitResult
from lavis_ext.evaluation.gqa.scores import score
from lavis_ext.evaluation.report.content import report_content
from lavis_ext.evaluation.report.page import write_report

EXAMPLES = 500


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score predictions and write the report."""
    arguments = _parser().parse_args(argv)
    log_to_stderr()
    check_options(arguments)
    check_output("--out", arguments.out)
    if arguments.examples < 0:
        raise UserError(f"--examples is {arguments.examples}; it must not be negative.")
    images = None if arguments.images is None else ImageFolder(arguments.images, recursive=True)
    reference = read_reference(arguments.questions, consistency=arguments.consistency)
    outcomes = outcomes_of(reference, arguments)
    scores = score(outcomes, arguments.resamples, arguments.seed)
    order = np.random.default_rng(arguments.seed).permutation(len(outcomes.questions))
    shown = [outcomes.questions[place].id for place in np.sort(order[: arguments.examples])]
    rows = np.flatnonzero(np.isin(reference.table.columns["question_id"].to_numpy(), shown))
    ids, texts = reference.table.texts(rows, "question_id", "question")
    name, metrics = arguments.questions.stem, metrics_of(scores)
    result = SplitResult(outcomes, scores, shown=shown)
    split = reported(name, metrics, result, dict(zip(ids, texts, strict=True)), images)
    facts = {"questions": str(arguments.questions), "predictions": str(arguments.predictions)}
    title = arguments.predictions.stem
    content = report_content(title, facts, {name: split}, arguments.log, ACCURACY)
    write_report(arguments.out, content)
    if arguments.json is not None:
        write_json(arguments.json, metrics)
    print(f"Wrote {arguments.out}: {scores.questions:,} questions, {len(shown):,} of them shown.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.report",
        description="Show predictions on GQA as one HTML page.",
    )
    add_prediction_options(parser)
    add_question_options(parser)
    parser.add_argument(
        "--images", help="folder, archive or address of the images, for the examples"
    )
    parser.add_argument(
        "--log", type=path_argument, help="log.jsonl of the training run, for its curves"
    )
    parser.add_argument("--out", type=path_argument, required=True, help="HTML file to write")
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, help="questions to show (%(default)s)"
    )
    return parser
