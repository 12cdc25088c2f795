"""``python -m lavis_ext.evaluation.gqa --questions F --predictions F [--choices F] ...``.

Command lines of the authors' script work as they are: ``--tier val --consistency --grounding``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lavis_ext.common.errors import command
from lavis_ext.common.files import write_json
from lavis_ext.common.logs import log_to_stderr
from lavis_ext.common.tables import show
from lavis_ext.evaluation.gqa.inputs import outcomes_of, read_reference
from lavis_ext.evaluation.gqa.options import (
    add_prediction_options,
    add_question_options,
    check_options,
)
from lavis_ext.evaluation.gqa.scores import score
from lavis_ext.evaluation.gqa.tables import scores_tables

AUTHORS_FILES = {
    "questions": "{tier}_all_questions.json",
    "predictions": "{tier}_predictions.json",
    "choices": "{tier}_choices.json",
    "scenes": "{tier}_sceneGraphs.json",
    "attentions": "{tier}_attentions.json",
}
OF_GROUNDING = ("scenes", "attentions")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compute all of GQA's metrics supported by the given files."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _name_files(arguments)
    for name in ("questions", "predictions"):
        if getattr(arguments, name) is None:
            parser.error(f"--{name} is needed, or --tier, which names GQA's files")
    if arguments.grounding and (arguments.scenes is None or arguments.attentions is None):
        parser.error("--grounding needs --scenes and --attentions, or --tier, which names them")
    log_to_stderr()
    check_options(arguments)
    reference = read_reference(arguments.questions, consistency=arguments.consistency)
    outcomes = outcomes_of(reference, arguments)
    scores = score(outcomes, arguments.resamples, arguments.seed)
    show(*scores_tables(scores))
    if arguments.json is not None:
        write_json(arguments.json, asdict(scores))


def _name_files(arguments: argparse.Namespace) -> None:
    """Insert the tier into file names, with the authors' script's names as defaults."""
    if arguments.tier is None:
        return
    for option, name in AUTHORS_FILES.items():
        given = getattr(arguments, option)
        if given is None and (option not in OF_GROUNDING or arguments.grounding):
            given = Path(name)
        if given is not None:
            setattr(arguments, option, Path(str(given).replace("{tier}", arguments.tier)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.evaluation.gqa",
        description="Score predictions on GQA as its authors' evaluation script does.",
    )
    add_prediction_options(parser, required=False)
    add_question_options(parser, required=False)
    parser.add_argument(
        "--tier",
        help="a split of GQA, such as val: files that aren't named are val_all_questions.json and "
        "so on in this folder, all of them needed, and {tier} in a name is the split",
    )
    parser.add_argument(
        "--grounding",
        action="store_true",
        help="with --tier: read attentions and scene graphs too, by their names",
    )
    return parser


if __name__ == "__main__":
    main()
