"""``python -m lavis_ext`` prints the registry, ``python -m lavis_ext COMMAND`` runs a command.

``python -m lavis_ext --help`` lists all commands of the package.
"""

import sys
from collections.abc import Sequence

from lavis_ext import __version__, registered
from lavis_ext.common.errors import UserError, command, nearest, shortened
from lavis_ext.common.tables import facts, show


def _export(arguments: Sequence[str]) -> None:
    # Imported here because printing the registry needs no model.
    from lavis_ext.export import main

    main(arguments)


def _fetch(arguments: Sequence[str]) -> None:
    from lavis_ext.fetch import main

    main(arguments)


def _keys(arguments: Sequence[str]) -> None:
    from lavis_ext.config.keys import main

    main(arguments)


def _push(arguments: Sequence[str]) -> None:
    from lavis_ext.hub.push import main

    main(arguments)


COMMANDS = {"export": _export, "fetch": _fetch, "keys": _keys, "push": _push}
ALL_COMMANDS = {
    "train.py": "train a model; --dry-run tells what a run needs and costs",
    "evaluate.py": "evaluate saved weights, and write a report",
    "-m lavis_ext.status": "tell where a run is; --follow until it ends",
    "-m lavis_ext.torchrun": "start a program on several processes, as torchrun does",
    "-m lavis_ext.sweep": "train a config many times, over a grid or a search, and compare",
    "-m lavis_ext": "list what is registered",
    "-m lavis_ext keys": "list config keys, or find them by words",
    "-m lavis_ext fetch": "download the weights, tokenizers and data that a config needs",
    "-m lavis_ext export": "write weights for transformers, or for DIFNet's authors' code",
    "-m lavis_ext push": "publish a run's weights on the Hugging Face hub, with a model card",
    "-m lavis_ext.ask": "answer questions about pictures, and draw where the model looked",
    "-m lavis_ext.serve": "a page on this machine where one drops a picture and asks",
    "-m lavis_ext.features.extract": "store the frozen encoders' output for a run's images",
    "-m lavis_ext.models.merge": "merge LoRA's updates into the weights",
    "-m lavis_ext.datasets.gqa.download": "download GQA",
    "-m lavis_ext.datasets.mini_gqa": "draw mini-GQA, scenes of shapes in GQA's formats",
    "-m lavis_ext.evaluation.gqa": "score predictions by GQA's metrics",
    "-m lavis_ext.evaluation.compare": "compare two files of predictions",
    "-m lavis_ext.evaluation.leaderboard": "write the file for GQA's server",
    "-m lavis_ext.evaluation.report": "write a report page of predictions",
    "-m lavis_ext.pretraining.ship": "put newly trained small models into the package",
}
"""What each command does. All take --help."""


@command
def main() -> None:
    """Run a command, or print the registered names of each kind of class."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("-h", "--help", "help"):
        rows = [(f"python {each}", does) for each, does in ALL_COMMANDS.items()]
        show("Commands; each has --help:", facts(rows))
        return
    if name in COMMANDS:
        COMMANDS[name](arguments)
        return
    if name:
        raise UserError(
            f"There is no command '{shortened(name)}'; there are: {', '.join(COMMANDS)}."
            f"{nearest(name, COMMANDS)} python -m lavis_ext --help lists all others."
        )
    from lavis_ext.encoders import streams  # noqa: F401  (registers the encoders)

    rows = [(kind, ", ".join(names) or "-") for kind, names in registered().items()]
    show(f"lavis_ext {__version__}", facts(rows), "Commands: python -m lavis_ext --help")


if __name__ == "__main__":
    main()
