"""Where a run's metrics go: a readable file, JSON lines, and TensorBoard or W&B when asked.

A disk that is full is no reason to end: what a file can't take waits in memory, in its order.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lavis_ext.common.errors import UserError, printable
from lavis_ext.common.files import Appended
from lavis_ext.runners.config import RunConfig, WandbConfig
from lavis_ext.runners.retries import Retries, unwritable
from lavis_ext.runners.run_folder import LINES
from lavis_ext.runners.tensorboard_file import TensorboardFile

log = logging.getLogger("lavis_ext")


class RunLog:
    """The log of the main process; the other processes' is silent but for warnings.

    Args:
        folder: the run's folder; None for a process that writes no files.
        config: the section ``run``.
        resolved: the whole config as plain containers, for W&B.
        resumed: ``position()`` as of the state that the run goes on from, and that state's step.
            What the log has beyond is removed: it will be written again.

    Raises UserError where the folder can't be written, and for TensorBoard or W&B that can't start.
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
                f"{unwritable(folder, error)}. Make room, or name another folder with "
                "run.output_dir."
            ) from None
        if config.wandb is not None:
            self._wandb = _wandb(folder, config.wandb, resolved, position["wandb"])

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of a step. ``kind`` is ``train``, a split, or ``skipped``."""
        if self._lines is None:
            return
        entry = {"time": round(time.time(), 3), "kind": kind, "step": step, **metrics}
        numbers = {f"{kind}/{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
        try:
            self._lines.append(f"{json.dumps(entry)}\n".encode())
        except OSError as error:
            self._retries.failed(
                unwritable(self._lines.path, error),
                "Its lines are kept in memory until it can, and training goes on.",
            )
        else:
            self._retries.worked(f"{self._lines.path} is written again, with the lines that waited")
        if self._tensorboard is not None:
            self._tensorboard.add(numbers, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def position(self) -> dict[str, Any]:
        """Where the log stands, for a run that goes on from here. What it has is on the disk.

        Raises OSError where lines can't be written.
        """
        if self._lines is None:
            return {}
        wandb = None if self._wandb is None else self._wandb.id
        return {"bytes": self._lines.sync(), "wandb": wandb}

    def close(self, *, failed: bool = False) -> None:
        """Flush and close everything; W&B is told whether the run ``failed``.

        Lines that still can't be written are of steps after the last state: none is ever lost to a
        run that goes on from it.
        """
        for sink in (self._lines, self._tensorboard):
            if sink is not None:
                with suppress(OSError):
                    sink.flush()
                with suppress(OSError):
                    sink.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))


class _Terminal(logging.StreamHandler):
    """Messages to the terminal, which may be a file on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave out what can't be written."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _TextFile(logging.Handler):
    """Messages to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = Appended(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or keep it in memory."""
        with suppress(OSError):  # the terminal tells why
            self._file.append(f"{self.format(record)}\n".encode())

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.flush()
        self._file.close()
        super().close()


class Printable(logging.Formatter):
    """Lets nothing through that would steer a terminal: ids and answers come from data."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().format(record))


def set_up_logging(folder: Path | None, *, quiet: bool) -> None:
    """Messages to the terminal and, with a folder, to its ``log.txt``; quiet: warnings alone.

    Only this library's logger is touched: LAVIS's setup takes over the root logger. Raises OSError
    where the folder can't be written.
    """
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    terminal = _Terminal(sys.stdout)
    terminal.setFormatter(Printable("%(message)s"))
    log.addHandler(terminal)
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


def duration(seconds: float) -> str:
    """``1 h 05 min``, ``4 min 10 s`` or ``12 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
