"""The file of ``run.tensorboard``.

The records are TensorBoard's own (``RecordWriter``); only the file is ours. torch's
``SummaryWriter`` gives up for good at the first error: with a disk that is full from step 2 to 4 of
9, it raises OSError at every step from 2 on, and its file has step 1 alone. Here records wait, and
all 9 are in the file: ``pytest tests/robustness/test_full_disk.py -k no_reason_to_end``.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lavis_ext.common.errors import UserError
from lavis_ext.common.files import Appended


class TensorboardFile:
    """Scalars for TensorBoard, which survive a full disk.

    Args:
        folder: where its file goes.
        purge: scalars of this step and later, in files of before, are of no use any more.

    Raises UserError where TensorBoard isn't installed, OSError where the file can't be made.
    """

    def __init__(self, folder: Path, purge: int) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise UserError(
                "run.tensorboard: TensorBoard isn't installed; `pip install tensorboard`, or leave "
                "it out of the config."
            ) from None
        self._events, self._summaries, self._records = event_pb2, summary_pb2, RecordWriter
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(folder / name)
        self._append(file_version="brain.Event:2")
        self._append(step=purge, session_log=event_pb2.SessionLog(status="START"))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Scalars of a step by name."""
        values = [
            self._summaries.Summary.Value(tag=name, simple_value=value)
            for name, value in numbers.items()
        ]
        self._append(step=step, summary=self._summaries.Summary(value=values))

    def flush(self) -> None:
        """Write what waits. Raises OSError where it goes on waiting."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, **event: Any) -> None:
        content = self._events.Event(wall_time=time.time(), **event).SerializeToString()
        record = io.BytesIO()
        self._records(record).write(content)
        with suppress(OSError):  # the log's lines tell of it
            self._file.append(record.getvalue())
