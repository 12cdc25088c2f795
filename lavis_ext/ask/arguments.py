"""Arguments of commands that answer questions: which model, on which device."""

import argparse
import sys

import torch

from lavis_ext.ask.pipeline import Pipeline, build_pipeline, model_section
from lavis_ext.common.errors import UserError, printable
from lavis_ext.config.command_line import add_imports_argument
from lavis_ext.config.loader import import_modules
from lavis_ext.models.pnp_vqa.model import PnpVqaFusion


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``, ``--model-type``, ``--options``, ``--imports`` and ``--device``."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="fusion weights written by training, or their name on the hub (default: those of the "
        "miniature)",
    )
    parser.add_argument(
        "--model-type",
        metavar="TYPE",
        help="model type, such as base_esam (default: that of the weights)",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        metavar="KEY=VALUE",
        help="values in the model's config, such as model.captioner.sampling.num_captions=5",
    )
    add_imports_argument(parser)
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="(%(default)s)"
    )


def pipeline_of(arguments: argparse.Namespace) -> Pipeline:
    """Build the pipeline that the arguments name; notes on it go to standard error.

    Raises UserError for modules, weights, types, options and devices that can't be used.
    """
    import_modules(arguments.imports)
    section = model_section(
        arguments.weights, arguments.model_type, arguments.options or [], print_note
    )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device is cuda, but torch finds no CUDA device; use --device auto or cpu."
        )
    if note := PnpVqaFusion.untrained_note(section):
        print_note(note)
    return build_pipeline(section, arguments.device)


def print_note(text: str) -> None:
    """Print a note on standard error."""
    print(f"note: {printable(text)}", file=sys.stderr)
