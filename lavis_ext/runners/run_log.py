"""Write a run's metrics to a text file, JSON lines and, if configured, TensorBoard or W&B.

A full disk doesn't end the run: lines are kept in memory, in order, until they can be written.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import Appended
from lavis_ext.common.logs import Printable, TerminalHandler, log, replace_handlers
from lavis_ext.runners.config import RunConfig, WandbConfig
from lavis_ext.runners.retries import Retries, unwritable
from lavis_ext.runners.run_folder import LINES
from lavis_ext.runners.tensorboard_file import TensorboardFile


class RunLog:
    """The metrics log of the main process; other processes log warnings only.

    Args:
        folder: the folder of the run; None for a process that writes no files.
        config: the section ``run``.
        resolved: the resolved config as plain containers, for W&B.
        resumed: ``position()`` and step of the state that the run resumes from. Later lines are
            removed, since they will be written again.

    Raises UserError if the folder can't be written, or TensorBoard or W&B can't start.
    """

    def __init__(
        self,
        folder: Path | None,
        config: RunConfig,
        resolved: Mapping[str, Any],
        resumed: tuple[Mapping[str, Any], int] | None = None,
    ) -> None:
        self._lines: Appended | None = None
        self._tensorboard: TensorboardFile | None = None
        self._wandb: Any = None
        self._retries = Retries()
        try:
            set_up_logging(folder, quiet=folder is None)
            if folder is None:
                return
            position, step = resumed or ({"bytes": 0, "wandb": None}, -1)
            self._lines = Appended(folder / LINES, position["bytes"])
            if config.tensorboard:
                self._tensorboard = TensorboardFile(folder, purge=step + 1)
        except OSError as error:
            raise UserError(
                f"{unwritable(folder, error)}. Free some disk space, or set another folder with "
                "run.output_dir."
            ) from None
        if config.wandb is not None:
            self._wandb = _wandb(folder, config.wandb, resolved, position["wandb"])

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of a step. ``kind`` is ``train``, a split, or ``skipped``."""
        if self._lines is None:
            return
        entry = {"time": round(time.time(), 3), "kind": kind, "step": step, **metrics}
        numbers = {f"{kind}/{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
        try:
            self._lines.append(f"{json.dumps(entry)}\n".encode())
        except OSError as error:
            self._retries.failed(
                unwritable(self._lines.path, error),
                "Its lines are kept in memory until it is writable; training continues.",
            )
        else:
            self._retries.worked(f"{self._lines.path} is writable again; pending lines are written")
        if self._tensorboard is not None:
            self._tensorboard.add(numbers, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def position(self) -> dict[str, Any]:
        """Flush the log to disk and return its position, for resuming from here.

        Raises OSError if lines can't be written.
        """
        if self._lines is None:
            return {}
        wandb = None if self._wandb is None else self._wandb.id
        return {"bytes": self._lines.sync(), "wandb": wandb}

    def close(self, *, failed: bool = False) -> None:
        """Flush and close all outputs; ``failed`` is passed on to W&B.

        Lines that still can't be written belong to steps after the last state, and a run resumed
        from it writes them again.
        """
        for sink in (self._lines, self._tensorboard):
            if sink is not None:
                with suppress(OSError):
                    sink.flush()
                with suppress(OSError):
                    sink.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))


class _TextFile(logging.Handler):
    """Writes messages to a file, or keeps them in memory while the disk is full."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = Appended(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message; on failure keep it for the next call."""
        with suppress(OSError):  # the terminal shows the reason
            self._file.append(f"{self.format(record)}\n".encode())

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.flush()
        self._file.close()
        super().close()


def set_up_logging(folder: Path | None, *, quiet: bool) -> None:
    """Log to the terminal and, with a folder, to its ``log.txt``; ``quiet`` logs warnings only.

    Only this library's logger is changed, since LAVIS configures the root logger. Raises OSError
    if the folder can't be written.
    """
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    replace_handlers(TerminalHandler("stdout"))
    if folder:
        file = _TextFile(folder / "log.txt")
        file.setFormatter(Printable("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)


def _wandb(
    folder: Path, config: WandbConfig, resolved: Mapping[str, Any], run_id: str | None
) -> Any:
    import wandb

    try:
        return wandb.init(
            project=config.project,
            name=config.name or folder.name,
            mode=cast(Any, config.mode),
            dir=str(folder),
            config=dict(resolved),
            id=run_id,
            resume=None if run_id is None else "allow",
        )
    except wandb.Error as error:
        raise UserError(
            f"run.wandb: Weights & Biases can't start ({str(error).splitlines()[0]}). Log in with "
            "`wandb login`, or set run.wandb.mode to offline."
        ) from None
