"""Where a run's figures go: a readable file, JSON lines, and TensorBoard or W&B when asked."""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavis_ext.errors import UserError, printable
from lavis_ext.runners.config import RunConfig, WandbConfig
from lavis_ext.runners.run_folder import LINES

log = logging.getLogger("lavis_ext")


class RunLog:
    """The log of the main process; the other processes' is silent but for warnings.

    Args:
        folder: the run's folder; None for a process that writes no files.
        config: the section ``run``.
        resolved: the whole config as plain containers, for W&B.
        resumed: ``position()`` as of the state that the run goes on from, and that state's step.
            What the log has beyond is removed: it will be written again.
    """

    def __init__(
        self,
        folder: Path | None,
        config: RunConfig,
        resolved: Mapping[str, Any],
        resumed: tuple[Mapping[str, Any], int] | None = None,
    ) -> None:
        self._lines = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        set_up_logging(folder, quiet=folder is None)
        if folder is None:
            return
        position, step = resumed or ({"bytes": 0, "wandb": None}, -1)
        self._lines = (folder / LINES).open("a", encoding="utf-8", buffering=1)
        self._lines.truncate(min(position["bytes"], self._lines.tell()))
        if config.tensorboard:
            self._tensorboard = _tensorboard(folder, purge=step + 1)
        if config.wandb is not None:
            self._wandb = _wandb(folder, config.wandb, resolved, position["wandb"])

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Figures of a step. ``kind`` is ``train``, a split, or ``skipped``."""
        if self._lines is None:
            return
        entry = {"time": round(time.time(), 3), "kind": kind, "step": step, **figures}
        self._lines.write(json.dumps(entry) + "\n")
        numbers = {f"{kind}/{k}": v for k, v in figures.items() if isinstance(v, int | float)}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def position(self) -> dict[str, Any]:
        """Where the log stands, for a run that goes on from here. What it has is on the disk."""
        if self._lines is None:
            return {}
        self._lines.flush()
        os.fsync(self._lines.fileno())
        wandb = None if self._wandb is None else self._wandb.id
        return {"bytes": os.fstat(self._lines.fileno()).st_size, "wandb": wandb}

    def close(self, *, failed: bool = False) -> None:
        """Flush and close everything; W&B is told whether the run ``failed``."""
        for sink in (self._lines, self._tensorboard):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))


class Printable(logging.Formatter):
    """Lets nothing through that would steer a terminal: ids and answers come from data."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().format(record))


def set_up_logging(folder: Path | None, *, quiet: bool) -> None:
    """Messages to the terminal and, with a folder, to its ``log.txt``; quiet: warnings alone.

    Only this library's logger is touched: LAVIS's setup takes over the root logger.
    """
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setFormatter(Printable("%(message)s"))
    log.addHandler(terminal)
    if folder:
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
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
            mode=config.mode,  # type: ignore[arg-type]
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


def _tensorboard(folder: Path, purge: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "run.tensorboard: TensorBoard isn't installed; `pip install tensorboard`, or leave it "
            "out of the config."
        ) from None
    return SummaryWriter(str(folder), purge_step=purge)


def duration(seconds: float) -> str:
    """``1 h 05 min``, ``4 min 10 s`` or ``12 s``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
