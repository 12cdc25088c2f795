"""``python -m lavis_ext.models.merge``: merge LoRA into a file of trained weights."""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lavis_ext.checkpoints.trained_weights import TrainedWeights
from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command
from lavis_ext.common.files import check_creatable, size_in_words
from lavis_ext.config.command_line import add_imports_argument
from lavis_ext.config.loader import import_modules
from lavis_ext.config.renamed import rename_old_keys
from lavis_ext.config.typed import look_up
from lavis_ext.models.lora import WHERE, merged


def merge_file(source: Path, out: Path) -> TrainedWeights:
    """Merge LoRA into the weights of ``source``, a file written by training, and write ``out``.

    The model is built as in the run that trained the file, from that run's initial weights. Raises
    UserError for a file without LoRA, if ``out`` exists or can't be written, and as loading does.
    """
    try:
        if out.exists():
            raise UserError(f"{out} exists already; name a new file.")
        check_creatable(out)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror}).") from None
    weights = TrainedWeights.load(source, key="weights")
    tree: dict[str, Any] = {"model": copy.deepcopy(weights.config["model"])}
    if not tree["model"].get("lora"):
        raise UserError(f"{source}: the run that trained it had no {WHERE}; nothing to merge.")
    model_class = look_up("model", tree["model"].get("arch"), f"{source}: model.arch")
    rename_old_keys(tree, model_class.OLD_KEYS)
    section = tree["model"]
    model_class.complete_saved(section)
    loads_itself = model_class.weights_key in section
    if loads_itself:
        section[model_class.weights_key] = str(source)
    model = model_class.from_config(OmegaConf.create(section))
    if not loads_itself:
        model.load_trained(weights, str(source))
    found = merged(model, weights)
    try:
        found.save(out)
    except OSError as error:
        raise UserError(f"{out} can't be written ({error.strerror}).") from None
    return found


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Merge LoRA and print the size of the file."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext.models.merge",
        description="Merge LoRA into the weights that it adapts.",
    )
    parser.add_argument("weights", type=path_argument, help="file written by training")
    parser.add_argument("out", type=path_argument, help="file to write")
    add_imports_argument(parser)
    options = parser.parse_args(argv)
    import_modules(list(options.imports))
    found = merge_file(options.weights, options.out)
    size = size_in_words(options.out.stat().st_size)
    print(f"{options.out}: {len(found.state)} tensors, {size}; it needs no {WHERE}")


if __name__ == "__main__":
    main()
