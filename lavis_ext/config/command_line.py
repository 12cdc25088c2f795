"""Arguments that several commands share: ``--imports``, and ``--options`` of a model alone."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lavis_ext.common.errors import UserError
from lavis_ext.config.loader import parse_options
from lavis_ext.config.renamed import OldKey, rename_old_keys, renamed_line
from lavis_ext.config.typed import A_MAPPING, shown


def add_imports_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--imports``, a list of modules for ``config.loader.import_modules``."""
    parser.add_argument(
        "--imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules to import first, for classes of your own",
    )


def model_options(
    options: Sequence[str], old_keys: Iterable[OldKey]
) -> tuple[DictConfig, str | None]:
    """Parse ``model.KEY=VALUE``.

    Args:
        options: the values of ``--options``.
        old_keys: renamed keys of the model's class.

    Returns:
        The tree with the single section ``model``, under current names, and a line on renamed
        keys, if there are any.

    Raises:
        UserError: for keys of other sections and for malformed options.
    """
    tree: Any = OmegaConf.to_container(parse_options(options))
    found = rename_old_keys(tree, old_keys)
    if others := [str(name) for name in tree if name != "model"]:
        raise UserError(
            f"--options: '{others[0]}' isn't an option here; only model options are, such as "
            "model.captioner.sampling.num_captions=5."
        )
    model = tree.setdefault("model", {})
    if not isinstance(model, dict):
        raise UserError(f"--options: model is {shown(model)}; it must be {A_MAPPING}.")
    return OmegaConf.create(tree), renamed_line(found) if found else None
