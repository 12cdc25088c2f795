"""``python -m lavis_ext fetch``: download all files that a config needs before the run.

For a machine without a network, run on one that has it

    python -m lavis_ext fetch --cfg-path projects/pnp-vqa/train/gqa_train.yaml --to FOLDER

copy FOLDER to the other machine, and set there the two variables that the command prints.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lavis_ext.common.arguments import path_argument
from lavis_ext.common.errors import UserError, command

CACHES = {"HF_HOME": "huggingface", "TORCH_HOME": "torch"}
"""Environment variables for download caches, with the subfolder of FOLDER for each."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Download the files of a config. Raises UserError for files that are unavailable."""
    parser = argparse.ArgumentParser(
        prog="python -m lavis_ext fetch",
        description="Download the weights, tokenizers and data that a config needs.",
    )
    parser.add_argument("--cfg-path", required=True, help="YAML with model, datasets and run")
    parser.add_argument("--options", nargs="+", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument(
        "--to",
        type=path_argument,
        metavar="FOLDER",
        help="download weights there, for another machine",
    )
    parser.add_argument("--list", action="store_true", help="only list the files, without download")
    given = parser.parse_args(arguments)
    if given.to is not None:
        _restart_with_caches_in(given.to)
    _fetch(given)


def _restart_with_caches_in(folder: Path) -> None:
    """Restart this program with the download caches in ``folder``, unless they are there.

    The hub's client reads its variable on import, which may have happened already. Raises UserError
    if the folder can't be created.
    """
    folder = folder.absolute()
    wanted = {name: str(folder / below) for name, below in CACHES.items()}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to: {folder} can't be made ({error.strerror}).") from None
    sys.stdout.flush()
    program = [sys.executable, "-m", "lavis_ext", *sys.argv[1:]]
    os.execve(sys.executable, program, {**os.environ, **wanted})


def _fetch(given: argparse.Namespace) -> None:
    # Imported here because they take seconds, and only after a restart.
    from lavis_ext.checkpoints.needs import check_needs, needs_table, to_fetch
    from lavis_ext.common.tables import show
    from lavis_ext.config.loader import Config
    from lavis_ext.registry import registry

    cfg = Config(given)
    task = registry.get_task_class(cfg.run.task)
    needs = task.needs(cfg, cfg.run.splits)
    show(needs_table(needs))
    wanted = [] if given.list else to_fetch(needs)
    for need in wanted:
        print(f"fetching {need.key}: {need.located.place}", flush=True)
        assert need.fetch is not None
        need.fetch()
    if wanted:
        needs = task.needs(cfg, cfg.run.splits)
        show("", needs_table(needs))
    check_needs(needs, config=given.cfg_path, later=True)
    if given.to is not None:
        print("\nOn the machine without a network:")
        for name, below in CACHES.items():
            print(f"export {name}={given.to / below}")
