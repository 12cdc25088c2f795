"""Export weights to other programs: ``python -m lavis_ext export --weights FILE --to TARGET OUT``.

Targets are those of the model's class (``TrainableModel.EXPORTS``), whose ``export`` writes them.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command, nearest, printable
from lavis_ext.common.files import check_creatable
from lavis_ext.config.command_line import add_imports_argument, model_options
from lavis_ext.config.loader import import_modules, merge
from lavis_ext.config.typed import look_up
from lavis_ext.models import lora
from lavis_ext.models.base import TrainableModel


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write a model with its trained weights in the format of another program."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.out.exists():
            raise UserError(f"OUT: {arguments.out} is there already; name a path that isn't.")
        check_creatable(arguments.out, parents=True)
    except OSError as error:
        raise UserError(f"OUT: {arguments.out} can't be written ({error.strerror}).") from None
    import_modules(arguments.imports)
    model_class, given = _given(arguments.weights, arguments.options)
    if arguments.to not in model_class.EXPORTS:
        raise UserError(
            f"--to is '{arguments.to}'; {arguments.weights} can be exported to: "
            f"{', '.join(model_class.EXPORTS) or 'nothing'}."
            f"{nearest(arguments.to, model_class.EXPORTS)}"
        )
    defaults = OmegaConf.create({"model": model_class.default_section(given.model)})
    model: TrainableModel = model_class.from_config(merge(defaults, given).model)
    for report in model.load_reports:
        print(printable(str(report)))
    lora.merge(model)
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        written = model.eval().export(arguments.to, arguments.out)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"OUT: {arguments.out} can't be written ({reason}).") from None
    print(printable(f"{arguments.out}: {written}"))


def _given(weights: str, options: Sequence[str]) -> tuple[type[TrainableModel], Any]:
    """The model class of the weights, and the config ``model`` with their path and ``options``."""
    saved = TrainedWeights.load(weights, key="--weights", tensors=False)
    arch = saved.config["model"].get("arch")
    model_class = look_up("model", arch, f"--weights: {weights}")
    if not issubclass(model_class, TrainableModel):
        raise UserError(f"--weights: {weights} is of {arch}, which can't be exported.")
    named = {"model": {"arch": arch, model_class.weights_key: weights}}
    parsed, note = model_options(options, model_class.OLD_KEYS)
    if note:
        print(f"note: {printable(note)}", file=sys.stderr)
    given = merge(OmegaConf.create(named), parsed)
    return model_class, given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext export",
        description="Write trained weights in the format of another program.",
    )
    parser.add_argument("out", type=path_argument, metavar="OUT", help="folder or file to write")
    parser.add_argument("--weights", required=True, metavar="FILE", help="file written by training")
    parser.add_argument(
        "--to", required=True, metavar="TARGET", help="format, such as transformers or authors"
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="values in the model's config, such as model.streams.grid.weights=PATH",
    )
    add_imports_argument(parser)
    return parser


if __name__ == "__main__":
    main()
